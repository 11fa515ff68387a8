//! The baseline: an MCP server as a child process, spoken to over its pipes with raw JSON and blocking reads.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

pub struct Direct {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: String,
    next: u64,
}

/// What to start a server with.
pub struct Recipe {
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    /// Besides what this process has.
    pub env: Vec<(String, String)>,
}

impl Recipe {
    /// As a hosted server was started, read from its process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: i64) -> Result<Self> {
        let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let argv = cmdline.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        Ok(Self { argv, cwd: std::fs::read_link(format!("/proc/{pid}/cwd"))?, env: vec![] })
    }
}

impl Direct {
    /// Starts the server and initializes it.
    ///
    /// # Errors
    /// When it does not start or does not answer.
    pub fn start(recipe: &Recipe) -> Result<Self> {
        let (program, args) = recipe.argv.split_first().context("an empty command")?;
        let mut child = Command::new(program)
            .args(args)
            .current_dir(&recipe.cwd)
            .envs(recipe.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::with_capacity(1 << 16, child.stdout.take().context("no stdout")?);
        let mut direct = Self { child, stdin, stdout, line: String::new(), next: 0 };
        let hello = r#"{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}"#;
        direct.request("initialize", hello)?;
        direct.write(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_owned())?;
        Ok(direct)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn write(&mut self, mut line: String) -> Result<()> {
        line.push('\n');
        Ok(self.stdin.write_all(line.as_bytes())?)
    }

    fn send(&mut self, method: &str, params: &str) -> Result<u64> {
        self.next += 1;
        let id = self.next;
        self.write(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#))?;
        Ok(id)
    }

    /// Reads the next response; notifications and requests of the server are skipped.
    fn receive(&mut self) -> Result<()> {
        loop {
            self.line.clear();
            if self.stdout.read_line(&mut self.line)? == 0 {
                bail!("the server ended");
            }
            if self.line.contains(r#""method":"#) {
                continue;
            }
            ensure!(self.line.contains(r#""result":"#), "the server answered with an error: {}", self.line);
            return Ok(());
        }
    }

    /// # Errors
    /// When the server ended.
    pub fn request(&mut self, method: &str, params: &str) -> Result<()> {
        self.send(method, params)?;
        self.receive()
    }

    /// `total` calls with `window` of them under way.
    ///
    /// # Errors
    /// When the server ended.
    pub fn pipelined(&mut self, params: &str, window: usize, total: usize) -> Result<()> {
        for _ in 0..window.min(total) {
            self.send("tools/call", params)?;
        }
        for done in 1..=total {
            self.receive()?;
            if done + window <= total {
                self.send("tools/call", params)?;
            }
        }
        Ok(())
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // Some servers do not end with their stdin.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
