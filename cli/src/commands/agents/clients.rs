//! The MCP clients that we know: which file holds their servers, and how an entry is written there.
//!
//! Here: paths and shapes, as seen in the real programs. Not here: changing files (see [`super::edit`]), and what else Claude
//! Code is given (see [`super::claude`]).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::text::{Format, Shape};
use crate::args::ClientName;
use crate::env::{self, ClientFolders};
use crate::failure::Failure;

/// How a client writes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `command`, `args`, `env`, with a `type` where the client writes one.
    Parts { has_type: bool },
    /// `command` is the whole vector, the variables are `environment`.
    Vector,
}

#[derive(Debug, Clone)]
pub struct Client {
    pub name: ClientName,
    pub title: &'static str,
    pub format: Format,
    pub file: PathBuf,
    /// The field of the file that holds the servers.
    pub servers: &'static str,
    pub style: Style,
}

/// What an MCP client starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub command: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
}

pub const ALL: [ClientName; 6] = [
    ClientName::ClaudeCode,
    ClientName::Codex,
    ClientName::Cursor,
    ClientName::Vscode,
    ClientName::Gemini,
    ClientName::Opencode,
];

pub fn client(name: ClientName) -> Result<Client, Failure> {
    Ok(at(name, &env::client_folders()?))
}

fn at(name: ClientName, folders: &ClientFolders) -> Client {
    let ClientFolders { home, claude, codex, gemini, xdg_config } = folders;
    let parts = Style::Parts { has_type: false };
    let typed = Style::Parts { has_type: true };
    let (title, file, servers, style) = match name {
        ClientName::ClaudeCode => {
            let folder = claude.as_ref().unwrap_or(home);
            ("Claude Code", folder.join(".claude.json"), "mcpServers", typed)
        }
        ClientName::Codex => {
            let folder = codex.clone().unwrap_or_else(|| home.join(".codex"));
            ("Codex", folder.join("config.toml"), "mcp_servers", parts)
        }
        ClientName::Cursor => ("Cursor", home.join(".cursor/mcp.json"), "mcpServers", parts),
        ClientName::Vscode => {
            let folder = match cfg!(target_os = "macos") {
                true => home.join("Library/Application Support"),
                false => xdg_config.clone(),
            };
            ("VS Code", folder.join("Code/User/mcp.json"), "servers", typed)
        }
        ClientName::Gemini => {
            let folder = gemini.as_ref().unwrap_or(home);
            ("Gemini CLI", folder.join(".gemini/settings.json"), "mcpServers", parts)
        }
        ClientName::Opencode => ("opencode", opencode(xdg_config), "mcp", Style::Vector),
    };
    let format = if name == ClientName::Codex { Format::Toml } else { Format::Json };
    Client { name, title, format, file, servers, style }
}

/// The file that is there, in opencode's own order.
fn opencode(xdg_config: &Path) -> PathBuf {
    let folder = xdg_config.join("opencode");
    let files = ["opencode.jsonc", "opencode.json", "config.json"].map(|name| folder.join(name));
    files.into_iter().find(|file| file.exists()).unwrap_or_else(|| folder.join("opencode.json"))
}

impl Client {
    /// Whether there is a trace of it on this machine.
    pub fn is_here(&self) -> bool {
        match self.name {
            // Its folder is the home directory, which is everybody's.
            ClientName::ClaudeCode => self.file.exists(),
            _ => self.file.parent().is_some_and(Path::is_dir),
        }
    }

    /// The word on the command line.
    pub fn word(&self) -> &'static str {
        match self.name {
            ClientName::ClaudeCode => "claude-code",
            ClientName::Codex => "codex",
            ClientName::Cursor => "cursor",
            ClientName::Vscode => "vscode",
            ClientName::Gemini => "gemini",
            ClientName::Opencode => "opencode",
        }
    }
}

impl Style {
    /// The fields of an entry that starts `program`.
    pub fn entry(self, program: &Program) -> Vec<(String, Shape)> {
        let Program { command, args, env } = program;
        let env =
            || Shape::Fields(env.iter().map(|(name, value)| (name.clone(), Shape::text(value))).collect());
        let mut fields = Vec::new();
        let mut field = |name: &str, shape: Shape| fields.push((name.to_owned(), shape));
        match self {
            Self::Parts { has_type } => {
                if has_type {
                    field("type", Shape::text("stdio"));
                }
                field("command", Shape::text(command));
                field("args", Shape::texts(args));
                if !program.env.is_empty() {
                    field("env", env());
                }
            }
            Self::Vector => {
                field("type", Shape::text("local"));
                field("command", Shape::texts(std::iter::once(command).chain(args)));
                field("enabled", Shape::Leaf(Value::Bool(true)));
                if !program.env.is_empty() {
                    field("environment", env());
                }
            }
        }
        fields
    }

    /// What an entry starts; `None`: nothing on this machine.
    pub fn read(self, entry: &Value) -> Option<Program> {
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let (command, args, env) = match self {
            Self::Parts { .. } => {
                let args = match entry.get("args") {
                    Some(args) => texts(args)?,
                    None => Vec::new(),
                };
                (entry.get("command")?.as_str()?.to_owned(), args, entry.get("env"))
            }
            Self::Vector => {
                let mut words = texts(entry.get("command")?)?.into_iter();
                (words.next()?, words.collect(), entry.get("environment"))
            }
        };
        let env = env.and_then(Value::as_object).map(|fields| fields.iter().filter_map(variable).collect());
        Some(Program { command, args, env: env.unwrap_or_default() })
    }
}

fn variable((name, value): (&String, &Value)) -> Option<(String, String)> {
    let value = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(boolean) => boolean.to_string(),
        _ => return None,
    };
    Some((name.clone(), value))
}

/// The name of our entry, and how those of services begin.
pub const OUR_NAME: &str = "claudemesh";
pub const SERVICE_PREFIX: &str = "mesh-";

impl Program {
    /// `claudemesh mcp …` as this executable, with what it needs to find the same mesh.
    pub fn ours(mesh: Option<&str>, service: Option<&str>) -> Result<Self, Failure> {
        let exe = std::env::current_exe()
            .map_err(|e| Failure::platform(format!("cannot tell where this program is: {e}")))?;
        let command = exe.to_str().ok_or_else(|| Failure::user("the path of this program is not UTF-8"))?;
        let mesh = mesh.map(|slug| ["--mesh".to_owned(), slug.to_owned()]);
        let service = service.map(|name| ["--service".to_owned(), name.to_owned()]);
        let args = mesh.into_iter().flatten().chain(["mcp".to_owned()]).chain(service.into_iter().flatten());
        let folder = env::own_config_folder().and_then(|folder| folder.to_str().map(str::to_owned));
        Ok(Self {
            command: command.to_owned(),
            args: args.collect(),
            // Clients such as Codex give their servers a few variables only.
            env: folder.into_iter().map(|folder| ("CLAUDEMESH_CONFIG_DIR".to_owned(), folder)).collect(),
        })
    }

    /// Whether this is `claudemesh mcp …`, of any version, anywhere.
    pub fn is_ours(&self) -> bool {
        let words: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let words = match words.as_slice() {
            ["--mesh", _, rest @ ..] => rest,
            words => words,
        };
        is_our_executable(&self.command) && words.first() == Some(&"mcp")
    }
}

pub fn is_our_executable(command: &str) -> bool {
    Path::new(command).file_name().is_some_and(|name| name == OUR_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn program() -> Program {
        Program {
            command: "/opt/claudemesh".into(),
            args: vec!["--mesh".into(), "acme".into(), "mcp".into()],
            env: vec![("CLAUDEMESH_CONFIG_DIR".into(), "/c".into())],
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        for style in [Style::Parts { has_type: true }, Style::Parts { has_type: false }, Style::Vector] {
            let value = Shape::Fields(style.entry(&program())).value();
            assert_eq!(style.read(&value), Some(program()), "{value}");
        }
        let value = Shape::Fields(Style::Vector.entry(&program())).value();
        assert_eq!(value["command"], json!(["/opt/claudemesh", "--mesh", "acme", "mcp"]));
        assert_eq!(value["type"], "local");
    }

    #[test]
    fn only_our_own_program_with_our_own_command_is_ours() {
        assert!(program().is_ours());
        for (command, args) in
            [("npx", "mcp"), ("/x/claudemesh", "ls"), ("/x/claudemesh2", "mcp"), ("claudemesh", "")]
        {
            let other = Program { command: command.into(), args: vec![args.into()], env: vec![] };
            assert!(!other.is_ours(), "{command} {args}");
        }
    }

    #[test]
    fn the_variables_of_the_clients_move_their_files() {
        let folders = |claude: Option<&str>| ClientFolders {
            home: "/h".into(),
            claude: claude.map(PathBuf::from),
            codex: Some("/codex".into()),
            gemini: None,
            xdg_config: "/h/.config".into(),
        };
        let file = |name, claude| at(name, &folders(claude)).file.display().to_string();
        assert_eq!(file(ClientName::ClaudeCode, None), "/h/.claude.json");
        assert_eq!(file(ClientName::ClaudeCode, Some("/c")), "/c/.claude.json");
        assert_eq!(file(ClientName::Codex, None), "/codex/config.toml");
        assert_eq!(file(ClientName::Gemini, None), "/h/.gemini/settings.json");
        assert_eq!(file(ClientName::Opencode, None), "/h/.config/opencode/opencode.json");
    }
}
