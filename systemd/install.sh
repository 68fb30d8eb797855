#!/bin/sh
# Installs the worker and its units on this machine, as root; run it again to update. Neither configuration nor
# drop-ins are overwritten, and nothing is started.
#   systemd/install.sh            from this source tree
#   systemd/install.sh a.whl      from a wheel of the same version
# Every package is one of those in requirements/, byte for byte. REQUIREMENTS=image-gigachat.txt installs the GigaChat
# client too. pip's own variables hold, such as PIP_FIND_LINKS=DIRECTORY with PIP_NO_INDEX=1 for a machine without a
# package index. PREFIX (default /usr/local) is where the manual page and the shells' completions go.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$(dirname "$here")
locks=$tree/requirements
home=/opt/gigaoffice-worker
etc=/etc/gigaoffice-worker
units=/etc/systemd/system
share=${PREFIX:-/usr/local}/share
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

[ "$(id -u)" -eq 0 ] || { echo "install.sh: must run as root" >&2; exit 1; }
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

locked() { # locked PYTHON LOCK: install what a lock names and nothing else
  "$1" -m pip install --quiet --require-hashes --only-binary :all: --requirement "$locks/$2"
}

wheel=${1:-}
if [ -z "$wheel" ]; then
  # Of a copy: a build leaves its litter in the tree, which may be read-only.
  cp -R "$tree/gigaoffice_worker" "$tree/pyproject.toml" "$tree/setup.py" "$tree/README.md" "$tree/LICENSE" "$work/"
  python3 -m venv "$work/tools"
  locked "$work/tools/bin/python" build.txt
  "$work/tools/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$work"
  wheel=$(echo "$work"/wheel/*.whl)
fi
python3 -m venv "$home"
locked "$home/bin/python" "${REQUIREMENTS:-image.txt}"
"$home/bin/python" -m pip install --quiet --no-deps --no-index --force-reinstall "$wheel"

install -d -m 755 "$etc" "$share"
install -d -m 700 "$etc/credentials"
[ -e "$etc/worker.env" ] || install -m 600 "$here/example.env" "$etc/worker.env"
for unit in gigaoffice-worker.service gigaoffice-worker@.service; do
  install -m 644 "$here/$unit" "$units/$unit"
  install -d -m 755 "$units/$unit.d"
  [ -e "$units/$unit.d/local.conf" ] || install -m 644 "$here/local.conf" "$units/$unit.d/local.conf"
done
[ ! -d /run/systemd/system ] || systemctl daemon-reload
"$home/bin/python" -m gigaoffice_worker.cli.manual "$share" >"$work/manual"

echo "Installed $("$home/bin/gigaoffice-worker" --version), and below $share:"
sed "s|^$share/|  |" "$work/manual"
echo "Next: edit $etc/worker.env, then systemctl enable --now gigaoffice-worker"
