//! Where a secret comes from: the terminal without echo, stdin, or a file. Never from argv.
//!
//! Invariant: the value is zeroed when it is dropped, and no message holds any of it.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use wire::vault::{EntryKind, MAX_FILE_VALUE};
use zeroize::Zeroizing;

use crate::args::SetArgs;
use crate::failure::Failure;

pub struct Value {
    pub kind: EntryKind,
    pub bytes: Zeroizing<Vec<u8>>,
}

/// One byte more than the largest value, so that a larger one is told from it; the vault's own check refuses it.
const READ_LIMIT: u64 = MAX_FILE_VALUE as u64 + 1;

const SHORTEST_PASSPHRASE: usize = 12;

pub fn read(args: &SetArgs) -> Result<Value, Failure> {
    if !args.extra.is_empty() {
        // Not echoed: what stands there may be the secret.
        let message = "a secret is not given on the command line: everybody on this machine can read that, and \
                       your shell writes it down";
        return Err(Failure::of_code(wire::ErrorCode::VaultError, message).with_cure(format!(
            "`claudemesh vault set {0}` asks for it; or: claudemesh vault set {0} < FILE. If it was a real one, change it.",
            args.key
        )));
    }
    if let Some(path) = &args.file {
        return Ok(Value { kind: EntryKind::File, bytes: of_file(path)? });
    }
    let stdin = io::stdin();
    let bytes = if stdin.is_terminal() {
        typed_twice(&format!("value of {}", args.key))?
    } else {
        all_of(&mut stdin.lock(), "stdin")?
    };
    Ok(Value { kind: EntryKind::Env, bytes: without_line_end(bytes) })
}

/// Of a file that only it opens. One that is `new` is typed twice. From a file or stdin, without its line break.
pub fn passphrase(file: Option<&Path>, is_new: bool) -> Result<Zeroizing<String>, Failure> {
    let stdin = io::stdin();
    let bytes = match file {
        Some(path) => without_line_end(of_file(path)?),
        None if !stdin.is_terminal() => without_line_end(all_of(&mut stdin.lock(), "stdin")?),
        None if is_new => typed_twice("passphrase")?,
        None => Silent::begin()?.ask("passphrase: ")?,
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::user("a passphrase is UTF-8 text"))?;
    if is_new && text.chars().count() < SHORTEST_PASSPHRASE {
        return Err(Failure::user(format!("a passphrase has at least {SHORTEST_PASSPHRASE} characters")));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Something secret that a configuration asks for by name.
pub fn typed(what: &str) -> Result<Zeroizing<String>, Failure> {
    let bytes = Silent::begin()?.ask(&format!("{what}: "))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::user("that is not UTF-8 text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn of_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut file = std::fs::File::open(path)
        .map_err(|e| Failure::user(format!("cannot read {}: {e}", path.display())))?;
    all_of(&mut file, &path.display().to_string())
}

fn all_of(from: &mut dyn Read, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for everything at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_VALUE + 2));
    from.take(READ_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::user(format!("cannot read {name}: {e}")))?;
    Ok(bytes)
}

/// The one line break that `echo` and editors add.
fn without_line_end(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

fn typed_twice(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let silent = Silent::begin()?;
    let first = silent.ask(&format!("{what}: "))?;
    let again = silent.ask("once more: ")?;
    if *first != *again {
        return Err(Failure::user("the two differ; nothing was stored"));
    }
    Ok(first)
}

/// The terminal without echo, and without its own signals: a Ctrl-C that ended us would leave it silent.
struct Silent {
    before: Termios,
}

fn no_terminal(error: impl std::fmt::Display) -> Failure {
    Failure::platform(format!("cannot ask on the terminal: {error}"))
}

impl Silent {
    fn begin() -> Result<Self, Failure> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(no_terminal)?;
        let mut silent = before.clone();
        silent.local_flags -= LocalFlags::ECHO
            | LocalFlags::ECHONL
            | LocalFlags::ICANON
            | LocalFlags::ISIG
            | LocalFlags::IEXTEN;
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &silent).map_err(no_terminal)?;
        Ok(Self { before })
    }

    fn ask(&self, question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        write!(io::stderr(), "{question}").map_err(no_terminal)?;
        let typed = line(&mut Keys);
        let _ = writeln!(io::stderr());
        typed
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // What was pasted behind the end of the line is thrown away: a shell would take it for a command.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.before);
    }
}

/// Keys as they are pressed. Past the buffer of `std`, which would keep a copy of them.
struct Keys;

impl Read for Keys {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(io::stdin().as_fd(), bytes).map_err(io::Error::from)
    }
}

/// Up to Enter, with the keys that correct a line.
fn line(keys: &mut dyn Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let cancelled = || Failure::user("cancelled; nothing was stored");
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_VALUE + 2));
    let mut key = Zeroizing::new([0_u8; 1]);
    loop {
        match keys.read(key.as_mut()) {
            Ok(0) => return Err(cancelled()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(no_terminal(e)),
        }
        match key[0] {
            b'\r' | b'\n' => return Ok(bytes),
            // Ctrl-C, Ctrl-D, Ctrl-\, Ctrl-Z.
            3 | 4 | 26 | 28 => return Err(cancelled()),
            // Ctrl-U.
            21 => bytes.clear(),
            8 | 127 => {
                // All bytes of one character.
                while bytes.pop().is_some_and(|byte| byte & 0xC0 == 0x80) {}
            }
            byte if bytes.len() <= MAX_FILE_VALUE => bytes.push(byte),
            _ => return Err(Failure::user("that is too long to be typed; use --file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::vault::VaultName;

    use super::*;

    fn typed(keys: &[u8]) -> Result<Vec<u8>, String> {
        line(&mut &keys[..]).map(|line| line.to_vec()).map_err(|failure| failure.message)
    }

    #[test]
    fn a_line_is_typed_and_corrected_in_silence() {
        assert_eq!(typed(b"abc\rrest"), Ok(b"abc".to_vec()));
        assert_eq!(typed("aé\u{7f}b\n".as_bytes()), Ok(b"ab".to_vec()));
        assert_eq!(typed(b"\x7f\x7fwrong\x15right\n"), Ok(b"right".to_vec()));
        for ending in [&b"abc\x03"[..], b"abc\x04", b"abc"] {
            assert!(typed(ending).unwrap_err().starts_with("cancelled"));
        }
    }

    #[test]
    fn one_line_break_is_cut_and_nothing_else() {
        let cut = |text: &[u8]| without_line_end(Zeroizing::new(text.to_vec())).to_vec();
        assert_eq!(cut(b"a\n"), b"a");
        assert_eq!(cut(b"a\r\n"), b"a");
        assert_eq!(cut(b"a\n\n"), b"a\n");
        assert_eq!(cut(b" a "), b" a ");
        assert_eq!(cut(b"a\r"), b"a\r");
    }

    #[test]
    fn a_value_on_the_command_line_is_refused_and_not_repeated() {
        let args = SetArgs {
            key: VaultName::parse("k").unwrap(),
            file: None,
            extra: vec!["hunter2-hunter2".into()],
        };
        let refused = read(&args).err().unwrap();
        assert!(!refused.json().contains("hunter2"), "{}", refused.json());
        assert_eq!(refused.class.exit_code(), 2);
    }

    #[test]
    fn a_file_keeps_every_byte() {
        let mut name = [0_u8; 8];
        getrandom::fill(&mut name).unwrap();
        let path = std::env::temp_dir().join(format!("cm-value-{}", hex::encode(name)));
        std::fs::write(&path, b"\0a\r\n\n").unwrap();
        let args = SetArgs { key: VaultName::parse("k").unwrap(), file: Some(path.clone()), extra: vec![] };
        let value = read(&args).unwrap_or_else(|failure| panic!("{}", failure.message));
        std::fs::remove_file(path).unwrap();
        assert_eq!((value.kind, &value.bytes[..]), (EntryKind::File, &b"\0a\r\n\n"[..]));
    }
}
