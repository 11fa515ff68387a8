//! What stands in a configuration for a value that is elsewhere: `${VAR}`, `${VAR:-default}`, `${env:VAR}`, `{env:VAR}`, `$VAR`.

/// The name of what could not be found.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing(pub String);

/// `lookup` says what a variable is. `${HOME}` stays: a hosted server has a home of its own.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, Missing> {
    if let Some(name) = text.strip_prefix('$').filter(|name| is_name(name)) {
        return lookup(name).ok_or_else(|| Missing(name.to_owned()));
    }
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((at, open)) = first_opening(rest) {
        let inner = &rest[at + open.len()..];
        let Some((inside, behind)) = inner.split_once('}') else { break };
        expanded.push_str(&rest[..at]);
        expanded.push_str(&value_of(open, inside, lookup)?);
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn first_opening(text: &str) -> Option<(usize, &'static str)> {
    ["${", "{env:"].into_iter().filter_map(|open| Some((text.find(open)?, open))).min()
}

fn value_of(open: &str, inside: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, Missing> {
    let name = inside.strip_prefix("env:").unwrap_or(inside);
    if name == "HOME" {
        return Ok("${HOME}".to_owned());
    }
    let (name, default) = match name.split_once(":-") {
        Some((name, default)) => (name, Some(default.to_owned())),
        None => (name, None),
    };
    let found = if is_name(name) { lookup(name).filter(|value| !value.is_empty()) } else { None };
    // An unset variable is empty for opencode.
    let default = default.or_else(|| (open == "{env:").then(String::new));
    found.or(default).ok_or_else(|| Missing(name.to_owned()))
}

fn is_name(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clients_way_of_naming_a_variable_is_read() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, expanded) in [
            ("${A}", Ok("x")),
            ("$A", Ok("x")),
            ("a-${env:A}-{env:A}", Ok("a-x-x")),
            ("${B:-y}${A:-z}", Ok("yx")),
            ("{env:B}", Ok("")),
            ("${HOME}/d", Ok("${HOME}/d")),
            ("$5 and {a}", Ok("$5 and {a}")),
            ("${B}", Err("B")),
            ("${input:token}", Err("input:token")),
            ("unclosed ${A", Ok("unclosed ${A")),
        ] {
            let expected = expanded.map(str::to_owned).map_err(|name| Missing(name.to_owned()));
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }
}
