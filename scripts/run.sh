#!/usr/bin/env bash
# Starts claudemesh, hosts a real MCP server, calls it, says what to do next, and stays up until Ctrl-C.
set -euo pipefail
claudemesh=$1
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ claudemesh %s\n' "$*"; }

"$claudemesh" up &
up=$!
trap 'kill -TERM $up 2>/dev/null; wait $up' INT TERM
for _ in $(seq 300); do
  "$claudemesh" ls >/dev/null 2>&1 && break
  kill -0 $up 2>/dev/null || { wait $up; exit $?; }
  sleep 0.1
done

say "Hosting @modelcontextprotocol/server-everything"
show "deploy everything --mesh-wide -- npx -y @modelcontextprotocol/server-everything"
"$claudemesh" deploy everything --mesh-wide -- npx -y @modelcontextprotocol/server-everything

say "Calling one of its tools"
show "call everything echo '{\"message\":\"hello mesh\"}'"
"$claudemesh" call everything echo '{"message":"hello mesh"}'

say "What runs"
show "ls"
"$claudemesh" ls

cat <<TXT

claudemesh is up. In another terminal (the binary is $claudemesh):
  claudemesh tools everything                 what the server offers
  claudemesh deploy time --uvx mcp-server-time
  claudemesh invite --name bo                 a link for a teammate
  claudemesh logs everything -f
Ctrl-C stops it; \`make run\` again brings every service back.
TXT
wait $up
