//! What in a client's configuration is, or may be, a secret: by its name, its place or its look.
//!
//! A guess, and meant to err to the safe side. Nothing is shown or moved here.

use serde_json::Value;

/// Names of variables and fields that say what is in them.
const TELLTALE: [&str; 11] = [
    "KEY",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "_PASS",
    "CREDENTIAL",
    "AUTH",
    "COOKIE",
    "DSN",
];
/// Fields that hold what is nobody else's business.
const PRIVATE: [&str; 5] = ["env", "environment", "headers", "http_headers", "oauth"];

/// Options whose value is a variable or header of somebody else.
const GIVERS: [&str; 4] = ["-e", "--env", "-H", "--header"];

pub fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    TELLTALE.iter().any(|word| name.contains(word))
}

/// By how it begins, or as a URL with a password.
pub fn looks_secret(text: &str) -> bool {
    const STARTS: [&str; 14] = [
        "sk-",
        "sk_",
        "pk_live",
        "ghp_",
        "gho_",
        "ghs_",
        "github_pat_",
        "glpat-",
        "xoxb-",
        "xoxp-",
        "AKIA",
        "npm_",
        "pypi-",
        "Bearer ",
    ];
    let has_password = text.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    });
    has_password || STARTS.iter().any(|start| text.starts_with(start))
}

/// Nobody types such a thing: it was made by a machine, most likely to be kept. One that is no secret does no harm in the vault.
pub fn looks_random(text: &str) -> bool {
    let is_word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-+/=".contains(&b));
    let has = |what: fn(&u8) -> bool| text.bytes().any(|b| what(&b));
    let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let is_long = text.len() >= 20 && text.bytes().filter(u8::is_ascii_digit).count() >= 2;
    is_word && is_long && !text.starts_with('/') && (is_mixed || is_hex)
}

/// Every text of a configuration that must not be shown.
pub fn of(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(value, false, &mut found);
    found
}

fn collect(value: &Value, is_private: bool, found: &mut Vec<String>) {
    match value {
        Value::String(text) if is_private => found.push(text.clone()),
        Value::String(text) => found.extend(of_url(text)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, is_private, found)),
        Value::Object(fields) => {
            for (name, field) in fields {
                // Our own variable names a folder.
                let is_ours = name == "CLAUDEMESH_CONFIG_DIR";
                let is_private = is_private || PRIVATE.contains(&name.as_str()) || sounds_secret(name);
                collect(field, is_private && !is_ours, found);
                match name.as_str() {
                    "args" => arguments(field, 0, found),
                    // The program itself is none.
                    "command" => arguments(field, 1, found),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// A command as others may read it.
pub fn shown_command(words: &[String]) -> String {
    let value = Value::from(words.to_vec());
    let mut found = Vec::new();
    arguments(&value, 1, &mut found);
    let masked = words.iter().enumerate().map(|(at, word)| {
        let inside =
            found.iter().find(|secret| at > 0 && !secret.is_empty() && word.ends_with(secret.as_str()));
        inside.map_or_else(|| word.clone(), |secret| word.replace(secret.as_str(), "[secret]"))
    });
    masked.collect::<Vec<_>>().join(" ")
}

fn arguments(value: &Value, from: usize, found: &mut Vec<String>) {
    let args = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let args: Vec<&str> = args.iter().skip(from).filter_map(Value::as_str).collect();
    for (at, arg) in args.iter().enumerate() {
        let before = at.checked_sub(1).map_or("", |before| args[before]);
        let is_value = before.starts_with('-') && (sounds_secret(before) || GIVERS.contains(&before));
        let (name, value) = arg.split_once('=').unwrap_or(("", arg));
        // `--env=NAME=value`
        let (name, value) = match value.split_once('=') {
            Some((inner, value)) if GIVERS.contains(&name) => (inner, value),
            _ => (name, value),
        };
        let is_given =
            GIVERS.contains(&before) || GIVERS.iter().any(|giver| arg.starts_with(&format!("{giver}=")));
        let is_program_text = arg.contains(char::is_whitespace);
        if is_program_text || is_value && !is_given || looks_secret(arg) {
            found.push((*arg).to_owned());
        }
        if is_given || sounds_secret(name) || looks_secret(value) || looks_random(value) {
            found.push(value.to_owned());
        }
    }
}

/// The user part and the query.
fn of_url(text: &str) -> Vec<String> {
    let Some((_, rest)) = text.split_once("://") else { return Vec::new() };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = path.split(['/', '#']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    [user, query].into_iter().filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_the_secrets_in_it() {
        for (line, shown) in [
            ("npx -y pkg --port 1", "npx -y pkg --port 1"),
            ("npx pkg --api-key abc", "npx pkg --api-key [secret]"),
            ("npx pkg --token=abc", "npx pkg --token=[secret]"),
            ("docker run -e A=abc x/y", "docker run -e A=[secret] x/y"),
            ("npx pkg postgres://u:p@h/db", "npx pkg [secret]"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(shown_command(&words), shown);
        }
    }
}
