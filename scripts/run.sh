#!/usr/bin/env bash
# Starts claudemesh, hosts a real MCP server with a secret, calls it, says what to do next, and stays up until Ctrl-C.
set -euo pipefail
claudemesh=$1
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
# `up` always talks to the mesh of this machine, whatever other meshes its owner is a member of.
mine() { "$claudemesh" --mesh home "$@"; }
show() { printf '$ claudemesh %s\n' "$*"; }

# In a session of its own: a Ctrl-C that reached both of us would tell it twice to stop, which means at once, with its runner left behind.
setsid "$claudemesh" up --name home &
up=$!
# However this script ends, nothing of it stays behind.
trap 'kill -TERM $up 2>/dev/null || true; wait $up || true' EXIT
trap 'exit 130' INT TERM
for _ in $(seq 300); do
  mine ls >/dev/null 2>&1 && break
  kill -0 $up 2>/dev/null || { wait $up; exit $?; }
  sleep 0.1
done

# `up` lets its own runner open the vault a moment after both are there.
for _ in $(seq 300); do
  mine runner ls 2>/dev/null | grep -q ' yes *$' && break
  sleep 0.1
done

say "A secret, sealed here: the broker stores it and can not open it"
show "vault set demo-token        # from stdin; on a terminal it asks, without echo"
head -c 18 /dev/urandom | base64 | mine vault set demo-token

say "Hosting @modelcontextprotocol/server-everything with it"
show "deploy everything --mesh-wide --env 'DEMO_TOKEN=\$vault:demo-token' -- npx -y @modelcontextprotocol/server-everything"
mine deploy everything --mesh-wide --env 'DEMO_TOKEN=$vault:demo-token' -- npx -y @modelcontextprotocol/server-everything

say "Calling one of its tools"
show "call everything echo '{\"message\":\"hello mesh\"}'"
mine call everything echo '{"message":"hello mesh"}'

say "The server has the secret; whoever calls it does not see it"
show "call everything get-env     # it prints all of its variables; only this line is shown here"
mine call everything get-env | grep DEMO_TOKEN

say "Who opened it, for what"
show "vault ledger demo-token"
mine vault ledger demo-token -n 5

say "What Claude Code or any other MCP client starts to use it: one service as one MCP server over stdio"
show "mcp --service everything     # asked for its tools, then to add 19 and 23, as a client would"
# What was asked is answered, though nothing more will come.
printf '%s\n' \
  '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"run.sh","version":"0"}}}' \
  '{"jsonrpc":"2.0","method":"notifications/initialized"}' \
  '{"jsonrpc":"2.0","id":2,"method":"tools/list"}' \
  '{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"get-sum","arguments":{"a":19,"b":23}}}' |
  mine mcp --service everything | cut -c -160

say "What runs"
show "ls"
mine ls

cat <<TXT

claudemesh is up. In another terminal (the binary is $claudemesh):
  claudemesh connect claude-code              the mesh in your Claude Code; also codex, cursor, vscode, gemini, opencode
  claudemesh launch                           or one Claude Code session with it, and no file changed
  claudemesh import                           host the MCP servers that your clients have already
  claudemesh tools everything                 what the server offers
  claudemesh deploy time --uvx mcp-server-time
  claudemesh vault set KEY                    a secret of your own; then --env 'NAME=\$vault:KEY'
  claudemesh invite --name bo                 a link for a teammate
  claudemesh logs everything -f
Ctrl-C stops it; \`make run\` again brings every service back.
TXT
wait $up
