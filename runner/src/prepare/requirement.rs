//! What a person may write for a package: read strictly, so that nothing of it can be an option, a URL or a path.
//!
//! Not here: whether the package exists.

use super::error::PrepareError;

/// `name`, `@scope/name`, each with an optional `@version`, `@range` or `@tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NpmRequirement {
    pub(crate) name: String,
    pub(crate) wanted: Option<String>,
}

impl NpmRequirement {
    pub(crate) fn parse(text: &str) -> Result<Self, PrepareError> {
        let refused = |why: &str| {
            let shown: String = text.escape_debug().take(200).collect();
            PrepareError::refused(format!(
                "`{shown}` is not an npm package: {why}; use `name`, `name@version` or `@scope/name@version`, \
                 and `--git` or a folder for anything else"
            ))
        };
        let at = text.char_indices().skip(1).find(|&(_, c)| c == '@').map(|(i, _)| i);
        let (name, wanted) = match at {
            Some(at) => (&text[..at], Some(text[at + 1..].trim())),
            None => (text, None),
        };
        if !is_npm_name(name) {
            return Err(refused("the name is not a package name"));
        }
        match wanted {
            Some("") => return Err(refused("nothing follows the `@`")),
            Some(wanted) if !is_npm_range(wanted) => {
                return Err(refused("the version is not a version, range or tag"));
            }
            _ => {}
        }
        let wanted = wanted.map(str::to_owned);
        Ok(Self { name: name.to_owned(), wanted })
    }

    /// `name@wanted`, which npm can not read as anything but a registry package.
    pub(crate) fn spec(&self) -> String {
        format!("{}@{}", self.name, self.wanted.as_deref().unwrap_or("latest"))
    }

    /// Names no version, so any will do that the mesh allows.
    pub(crate) fn is_open(&self) -> bool {
        self.wanted.as_deref().is_none_or(|wanted| matches!(wanted, "latest" | "*"))
    }

    /// The name without its scope.
    pub(crate) fn last_part(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

fn is_npm_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
    };
    let scope = |scope: &str| {
        scope.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && scope.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
    };
    let fits = name.len() <= 214 && !name.eq_ignore_ascii_case("node_modules");
    let named = match name.strip_prefix('@') {
        Some(rest) => rest.split_once('/').is_some_and(|(s, n)| scope(s) && part(n)),
        None => part(name),
    };
    // `npm install x.tgz` means a file.
    fits && named && ![".tgz", ".tar", ".tar.gz"].iter().any(|end| name.ends_with(end))
}

/// A semver range or a tag: `1.2.3`, `^1`, `>=1 <2`, `1.x || 2`, `next`. Never `file:`, `npm:`, `git+…`, `user/repo`.
fn is_npm_range(text: &str) -> bool {
    text.len() <= 100
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || " .-+^~<>=|*_".contains(c))
        && ![".tgz", ".tar", ".tar.gz"].iter().any(|end| text.ends_with(end))
}

/// `name`, `name[extra]`, with `==1.2`, `>=1,<2`, or `@1.2` as uvx writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PyRequirement {
    /// Normalised as PEP 503 says: lowercase, runs of `-_.` are one `-`.
    pub(crate) name: String,
    pub(crate) extras: Vec<String>,
    /// `==1.2`, `>=1,<2`; empty for the newest.
    pub(crate) specifier: String,
}

impl PyRequirement {
    pub(crate) fn parse(text: &str) -> Result<Self, PrepareError> {
        let refused = |why: &str| {
            let shown: String = text.escape_debug().take(200).collect();
            PrepareError::refused(format!(
                "`{shown}` is not a PyPI package: {why}; use `name`, `name==version`, `name[extra]` or `name@version`, \
                 and `--git` or a folder for anything else"
            ))
        };
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if !is_py_name(name) || name.len() > 200 {
            return Err(refused("the name is not a package name"));
        }
        let (extras, rest) = match rest.trim_start().strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(|| refused("`[` is not closed"))?,
            None => ("", rest),
        };
        let extras: Vec<String> =
            extras.split(',').map(str::trim).filter(|e| !e.is_empty()).map(str::to_owned).collect();
        if !extras.iter().all(|extra| is_py_name(extra)) {
            return Err(refused("an extra is not a name"));
        }
        let specifier = match rest.trim() {
            "" | "@latest" => String::new(),
            rest => match rest.strip_prefix('@') {
                Some(version) if is_py_version(version.trim()) => format!("=={}", version.trim()),
                Some(_) => return Err(refused("a version must follow the `@`, URLs are not taken")),
                None => {
                    py_specifier(rest).ok_or_else(|| refused("the version is not a version specifier"))?
                }
            },
        };
        Ok(Self { name: normalise(name), extras, specifier })
    }

    pub(crate) fn spec(&self) -> String {
        let extras =
            if self.extras.is_empty() { String::new() } else { format!("[{}]", self.extras.join(",")) };
        format!("{}{extras}{}", self.name, self.specifier)
    }
}

/// PEP 503.
pub(crate) fn normalise(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.push(c.to_ascii_lowercase()),
        }
    }
    out
}

fn is_py_name(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

fn is_py_version(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".!+*-_".contains(c))
}

/// Comma-separated comparisons, without spaces.
fn py_specifier(text: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        let operator =
            ["===", "==", "~=", "!=", "<=", ">=", "<", ">"].into_iter().find(|op| part.starts_with(op))?;
        let version = part[operator.len()..].trim();
        is_py_version(version).then(|| parts.push(format!("{operator}{version}")))?;
    }
    Some(parts.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::ErrorCode;

    use super::*;

    #[test]
    fn npm_packages_are_read() {
        for (text, name, wanted) in [
            ("mcp-remote", "mcp-remote", None),
            ("mcp-remote@0.1.2", "mcp-remote", Some("0.1.2")),
            ("@scope/name", "@scope/name", None),
            ("@scope/name@^1.2", "@scope/name", Some("^1.2")),
            ("x@>=1 <2 || 3.x", "x", Some(">=1 <2 || 3.x")),
            ("x@next", "x", Some("next")),
        ] {
            let read = NpmRequirement::parse(text).unwrap();
            assert_eq!((read.name.as_str(), read.wanted.as_deref()), (name, wanted), "{text}");
        }
    }

    #[test]
    fn options_urls_paths_and_aliases_are_no_npm_packages() {
        for bad in [
            "",
            "-g",
            "--registry=http://evil",
            "@-x/y",
            "../x",
            "./x",
            "/etc",
            "user/repo",
            "github:user/repo",
            "git+https://h/x.git",
            "https://h/x.tgz",
            "file:../x",
            "x@file:../y",
            "x@npm:other@1",
            "x@https://h/y.tgz",
            "x@user/repo",
            "x@",
            "x@--flag",
            "x.tgz",
            "x y",
            "x;id",
            "x\n",
            "@scope",
            "@scope/",
            "x@$(id)",
            "node_modules",
        ] {
            assert_eq!(NpmRequirement::parse(bad).unwrap_err().code(), ErrorCode::SourceRefused, "{bad:?}");
        }
    }

    #[test]
    fn pypi_packages_are_read_and_normalised() {
        for (text, spec) in [
            ("mcp-server-time", "mcp-server-time"),
            ("MCP_Server.Time==2025.1", "mcp-server-time==2025.1"),
            ("name[a, b]>=1, <2", "name[a,b]>=1,<2"),
            ("name@1.2", "name==1.2"),
            ("name@latest", "name"),
            ("name~=1.4", "name~=1.4"),
        ] {
            assert_eq!(PyRequirement::parse(text).unwrap().spec(), spec);
        }
    }

    #[test]
    fn options_urls_paths_and_markers_are_no_pypi_packages() {
        for bad in [
            "",
            "-r x",
            "--index-url=http://evil",
            "./x",
            "/etc/x",
            "x @ https://h/x.whl",
            "git+https://h/x",
            "x.whl/",
            "x==",
            "x; python_version<'3'",
            "x==1\n--index-url http://evil",
            "x[a",
            "x[-a]",
            "x@-1",
            "x=1",
            "x ==1 --hash=y",
        ] {
            assert_eq!(PyRequirement::parse(bad).unwrap_err().code(), ErrorCode::SourceRefused, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_one_word_that_no_tool_reads_as_an_option(text in "\\PC{0,40}") {
            if let Ok(read) = NpmRequirement::parse(&text) {
                prop_assert!(!read.spec().starts_with('-') && !read.spec().contains(['\n', ':', ';', '$']));
                prop_assert!(!read.name.contains(".."));
            }
            if let Ok(read) = PyRequirement::parse(&text) {
                prop_assert!(!read.spec().starts_with('-') && !read.spec().contains(['\n', ':', ';', '/', ' ']));
            }
        }
    }
}
