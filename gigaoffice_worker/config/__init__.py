"""The configuration: what the environment says, checked as a whole and frozen. Nothing else reads the environment."""

from gigaoffice_worker.config.files import read_env_file
from gigaoffice_worker.config.listing import Setting, effective, markdown_table
from gigaoffice_worker.config.loading import load
from gigaoffice_worker.config.model import (
    VARIABLES,
    Config,
    Consumer,
    Kafka,
    Logs,
    Producer,
    SidePort,
    Topics,
    TopicSpec,
    Worker,
)
from gigaoffice_worker.config.secret import Secret

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
    "Worker",
    "effective",
    "load",
    "markdown_table",
    "read_env_file",
]
