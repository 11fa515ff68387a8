# Two commands do everything on a fresh Debian machine with a Rust toolchain: `make run` and `make test`.
export PATH := $(CURDIR)/.tools/bin:$(PATH)
.PHONY: run test test-unit test-clients lint soak fuzz bench setup clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s '	'

run: ## build, start the platform, host a real MCP server, call it, stay up
	@scripts/setup.sh run
	@cargo build --release -p cli -p mcp
	@scripts/run.sh target/release/claudemesh

test: ## everything that CI runs: lints, unit tests, both databases, real processes, real MCP servers
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory lint
	@cargo build -p cli -p mcp
	@cargo test --workspace --exclude bench --no-fail-fast

test-unit: ## no registries, no database, no processes of ours
	@cargo test -p wire -p vault -p catalog -p jail -p client -p cli

test-clients: ## Claude Code, Codex, Gemini CLI, opencode, the SDKs and the Inspector with hosted services (part of `test`)
	@scripts/setup.sh clients
	@cargo build -p cli -p mcp
	@cargo test -p tests --test clients_claude --test clients_others --test clients_sdks --test clients_many

lint: ## formatting and clippy
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings

soak: ## 10,000 killed servers and 100 killed runners (release build; about a quarter of an hour)
	@scripts/setup.sh test
	@cargo build --release -p cli
	@cargo test --release -p jail --test strict_soak -- --nocapture
	@cargo test --release -p tests --test soak -- --nocapture

fuzz: ## each parser that faces a hostile side, a minute each (needs cargo-fuzz; see fuzz/README.md)
	@fuzz/run.sh

bench: ## the tables of docs/benchmarks.md (release build; minutes)
	@scripts/setup.sh run
	@cargo build --release -p cli -p mcp -p bench
	@target/release/bench all --binary target/release/claudemesh

setup: ## only install what is missing
	@scripts/setup.sh test

clean: ## remove build output and local tools
	@cargo clean
	@rm -rf .tools
