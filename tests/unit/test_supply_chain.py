"""What the image installs: locked by hashes, complete, as pyproject.toml wants it, under licences that we may ship."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.forked import ROOT

LOCKS = {"image.txt": ("http",), "image-gigachat.txt": ("http", "gigachat")}
# Permissive, or weak copyleft of libraries that are installed unchanged (certifi: MPL; crc32c: LGPL).
LICENCES = re.compile(r"MIT|BSD|Apache|PSF|Mozilla|MPL|Zope|LGPL|Lesser General Public")
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+) \\$((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?$)+)", re.MULTILINE)


def locked(name):
    return {found[1]: Version(found[2]) for found in PIN.finditer((ROOT / "requirements" / name).read_text("utf-8"))}


def wanted(extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for each in extras for text in project["optional-dependencies"][each])]
    return [found for found in map(Requirement, texts) if found.name != "gigaoffice-worker"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_by_hashes_to_a_version_that_fits(name):
    pins = locked(name)
    text = (ROOT / "requirements" / name).read_text("utf-8")
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)), "a line without a hash"
    for requirement in wanted(LOCKS[name]):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_what_the_locked_packages_need_is_locked_too(name):
    pins = locked(name)
    for each in pins:
        for requirement in map(Requirement, metadata.requires(each) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins, f"{each} needs {requirement}: make lock"


@pytest.mark.parametrize("package", sorted(set().union(*map(locked, LOCKS))))
def test_each_licence_may_be_shipped(package):
    about = metadata.metadata(package)
    classifiers = [each for each in about.get_all("Classifier") or [] if each.startswith("License ::")]
    named = " ".join([about.get("License-Expression") or "", (about.get("License") or "")[:60], *classifiers])
    assert LICENCES.search(named), named


def test_what_builds_the_wheel_is_locked():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]
    pins = locked("build.txt")
    for requirement in map(Requirement, build["requires"]):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize("script", ["Dockerfile", "systemd/install.sh"])
def test_nothing_is_installed_without_a_hash(script):
    text = (ROOT / script).read_text("utf-8").replace("\\\n", "")
    installs = [each for each in re.findall(r"pip[^&\n]*? (?:install|wheel) [^&\n]*", text) if not each.startswith("#")]
    assert len(installs) >= 3
    for line in installs:
        # Without a hash comes only the worker's own wheel, made of this source, by tools that have one.
        assert "--require-hashes" in line or "--no-deps --no-index" in line or "--no-build-isolation" in line, line
