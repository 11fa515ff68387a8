#!/usr/bin/env bash
# Installs what is missing on a Debian machine with a Rust toolchain. Says what it does; doing nothing is normal.
#   setup.sh run    what `make run` needs: C tools and libssl for the build, Node.js and Python for hosted servers
#   setup.sh clients that, and the MCP clients that the MCP edge is proven with (1.4 GB)
#   setup.sh test   all of that, and PostgreSQL, git and the other package managers that the tests use
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-run}
tools=$PWD/.tools
mkdir -p "$tools/bin"
export PATH="$tools/bin:$PATH"

case $(uname -m) in
  x86_64) arch=x64 bun_arch=x64 ;;
  aarch64) arch=arm64 bun_arch=aarch64 ;;
  *) printf 'setup: no Node.js build for %s is known here\n' "$(uname -m)" >&2; exit 1 ;;
esac

say() { printf 'setup: %s\n' "$*" >&2; }

apt_install() { # packages
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "run as root first: apt-get install -y ${missing[*]}"; exit 1; }
    root=(sudo)
  fi
  "${root[@]}" apt-get update -qq
  # The distribution's own database cluster is not wanted: tests start private ones.
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

node_major() { node --version 2>/dev/null | sed -n 's/^v\([0-9]*\).*/\1/p'; }

apt_install build-essential pkg-config libssl-dev ca-certificates python3 python3-venv
command -v node >/dev/null || apt_install nodejs
command -v npm >/dev/null || apt_install npm
if [ "$(node_major)" -lt 20 ]; then
  say "Node.js $(node --version) is too old for many MCP servers: adding Node.js 22 under .tools"
  npm install --silent --no-audit --no-fund --prefix "$tools/node" "node-linux-$arch@22" npm@10 >&2
  ln -sf "$tools/node/node_modules/node-linux-$arch/bin/node" "$tools/bin/node"
  ln -sf "$tools/node/node_modules/.bin/npm" "$tools/bin/npm"
fi
if ! command -v uv >/dev/null; then
  say "adding uv under .tools"
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" install --quiet uv
  ln -sf "$tools/python/bin/uv" "$tools/bin/uv"
fi

# What make test-clients compares and drives, each at the version that was looked at. A stamp holds the wish, so a new version installs anew.
add_clients() {
  local dir=$tools/clients
  local node_tools=(
    @anthropic-ai/claude-code@2.1.329 @openai/codex@0.169.0 @google/gemini-cli@0.61.0 opencode-ai@1.18.33
    @modelcontextprotocol/sdk@1.32.2 @modelcontextprotocol/client@2.4.0 @modelcontextprotocol/inspector@2.12.0
    @modelcontextprotocol/server-everything@2026.8.31
  )
  local python_tools=(mcp==2.3.0 mcp==1.30.0)
  local wish="${node_tools[*]} ${python_tools[*]}"
  [ "$(cat "$dir/installed" 2>/dev/null)" = "$wish" ] && return
  say "adding ${wish// /, } under .tools/clients"
  mkdir -p "$dir"
  # What it was is only known to be whole once all of this has worked.
  rm -f "$dir/installed"
  npm install --loglevel=error --no-audit --no-fund --prefix "$dir" "${node_tools[@]}" >&2
  local tool venv
  for tool in "${python_tools[@]}"; do
    venv=$dir/python-${tool#mcp==}
    uv venv --quiet --allow-existing "$venv" >&2
    uv pip install --quiet --python "$venv/bin/python" "$tool" >&2
  done
  # The programs proper are optional dependencies, one for each kind of machine: npm does not mind when a download of them fails.
  for tool in claude codex gemini opencode; do
    "$dir/node_modules/.bin/$tool" --version >/dev/null || { say "$tool does not run: is $dir incomplete?"; exit 1; }
  done
  printf '%s' "$wish" >"$dir/installed"
}

case $purpose in
  clients) add_clients; exit 0 ;;
  test) add_clients ;;
  *) exit 0 ;;
esac

apt_install git util-linux
if ! command -v initdb >/dev/null && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
  mkdir -p /etc/postgresql-common 2>/dev/null && printf 'create_main_cluster = false\n' >/etc/postgresql-common/createcluster.conf || true
  apt_install postgresql
fi
# A private container engine for tests/tests/sandbox; where there is one already, its programs do. RUNLEVEL=1: installed, not started.
PATH=$PATH:/usr/sbin command -v dockerd >/dev/null || RUNLEVEL=1 apt_install docker.io
if ! command -v pnpm >/dev/null || ! command -v yarn >/dev/null || ! command -v bun >/dev/null; then
  say "adding pnpm, yarn and bun under .tools"
  npm install --silent --no-audit --no-fund --prefix "$tools/managers" pnpm@10 yarn@1.22.22 "@oven/bun-linux-$bun_arch@1" >&2
  ln -sf "$tools/managers/node_modules/.bin/pnpm" "$tools/bin/pnpm"
  ln -sf "$tools/managers/node_modules/.bin/yarn" "$tools/bin/yarn"
  ln -sf "$tools/managers/node_modules/@oven/bun-linux-$bun_arch/bin/bun" "$tools/bin/bun"
fi
if [ ! -d "$tools/interop/node_modules/@hpke/core" ]; then
  say "adding @hpke/core under .tools, against which the vault is checked"
  npm install --silent --no-audit --no-fund --prefix "$tools/interop" @hpke/core@1.9.0 >&2
fi
