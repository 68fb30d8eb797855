"""The configuration: what the environment says, checked as a whole and frozen. Nothing else reads the environment."""

from gigaoffice_worker.config.files import read_env_file
from gigaoffice_worker.config.loading import effective, load
from gigaoffice_worker.config.model import (
    Config,
    Consumer,
    Kafka,
    Logs,
    Producer,
    Secret,
    SidePort,
    Topics,
    TopicSpec,
    Worker,
)
from gigaoffice_worker.config.variables import VARIABLES, Setting, Variable, readme_table

__all__ = [
    "VARIABLES",
    "Config",
    "Consumer",
    "Kafka",
    "Logs",
    "Producer",
    "Secret",
    "Setting",
    "SidePort",
    "TopicSpec",
    "Topics",
    "Variable",
    "Worker",
    "effective",
    "load",
    "read_env_file",
    "readme_table",
]
