#!/bin/sh
# Installs the worker and its units on this machine, as root; run it again to update. Neither configuration nor
# drop-ins are overwritten, and nothing is started.
#   systemd/install.sh            from this source tree
#   systemd/install.sh a.whl      from a wheel
# pip's own variables hold, such as PIP_FIND_LINKS=DIRECTORY with PIP_NO_INDEX=1 for a machine without a package index.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
package=${1:-$(dirname "$here")}
home=/opt/gigaoffice-worker
etc=/etc/gigaoffice-worker
units=/etc/systemd/system

[ "$(id -u)" -eq 0 ] || { echo "install.sh: must run as root" >&2; exit 1; }
umask 022

python3 -m venv "$home"
"$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --upgrade "${package}[http]"

install -d -m 755 "$etc"
install -d -m 700 "$etc/credentials"
[ -e "$etc/worker.env" ] || install -m 600 "$here/example.env" "$etc/worker.env"
for unit in gigaoffice-worker.service gigaoffice-worker@.service; do
  install -m 644 "$here/$unit" "$units/$unit"
  install -d -m 755 "$units/$unit.d"
  [ -e "$units/$unit.d/local.conf" ] || install -m 644 "$here/local.conf" "$units/$unit.d/local.conf"
done
[ ! -d /run/systemd/system ] || systemctl daemon-reload

echo "Installed $("$home/bin/gigaoffice-worker" --version)."
echo "Next: edit $etc/worker.env, then systemctl enable --now gigaoffice-worker"
