#!/usr/bin/env bash
# Each target for a minute (or the number of seconds given). Needs `cargo install cargo-fuzz`; stable Rust will do.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
command -v cargo-fuzz >/dev/null || { echo 'fuzz: run `cargo install cargo-fuzz` first' >&2; exit 1; }
export RUSTC_BOOTSTRAP=1
for target in dns sni http_head json_line archive_bytes archive_entries; do
  cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=20000 -len_control=0 -use_value_profile=1
done
