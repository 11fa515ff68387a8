//! What a person may write for a git source: read strictly, before libgit2 sees any of it.
//!
//! Not here: whether the repository, reference or folder exists ([`super::git`]).

use super::error::PrepareError;

/// A checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitSource {
    pub(crate) url: String,
    pub(crate) reference: Option<String>,
    pub(crate) subdir: Option<String>,
}

impl GitSource {
    pub(crate) fn parse(
        url: &str,
        reference: Option<&str>,
        subdir: Option<&str>,
        schemes: &[String],
    ) -> Result<Self, PrepareError> {
        check_url(url, schemes)?;
        if let Some(reference) = reference {
            check_reference(reference)?;
        }
        let subdir = subdir.map(|dir| dir.trim_matches('/')).filter(|dir| !dir.is_empty() && *dir != ".");
        if let Some(dir) = subdir {
            check_subdir(dir)?;
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { url: url.to_owned(), reference: owned(reference), subdir: owned(subdir) })
    }
}

/// Host (with port) of a URL; also tells whether a redirect still leads to the host that the token is for.
pub(crate) fn authority(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split('/').next()
}

fn check_url(url: &str, schemes: &[String]) -> Result<(), PrepareError> {
    let allowed = schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" and ");
    let refused = |why: &str| Err(PrepareError::refused(format!("the git URL is not used: {why}")));
    if url.len() > 2000 || url.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return refused("it has characters that no URL has");
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return refused(&format!("only {allowed} URLs are fetched"));
    };
    if !schemes.iter().any(|s| s == scheme) {
        return refused(&format!("only {allowed} URLs are fetched"));
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return refused("it has a user or password in it; give the token with `--git-token-file PATH`");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(plain) || path.is_empty() {
        return refused("it must be like https://host/owner/repository");
    }
    if path.starts_with('-') || path.contains(['?', '#']) {
        return refused("its path starts with `-`, or has a `?` or `#`; give the branch with `--ref`");
    }
    Ok(())
}

fn check_reference(reference: &str) -> Result<(), PrepareError> {
    let bad = reference.is_empty()
        || reference.len() > 250
        || reference.starts_with(['-', '/', '+', '.'])
        || reference.contains("..")
        || reference.contains("@{")
        || reference.chars().any(|c| c.is_control() || c.is_whitespace() || "\\^~:?*[".contains(c));
    if bad {
        let message = "the git reference is not used: name a branch, a tag or a commit id";
        return Err(PrepareError::refused(message));
    }
    Ok(())
}

fn check_subdir(dir: &str) -> Result<(), PrepareError> {
    let bad = dir.len() > 500
        || dir.chars().any(|c| c.is_control() || c == '\\')
        || dir.split('/').any(|part| matches!(part, "" | "." | "..") || part.starts_with('-'));
    if bad {
        return Err(PrepareError::refused(
            "the folder is not used: `--subdir` is a plain path inside the repository",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::ErrorCode;

    use super::*;

    fn parse(url: &str, reference: Option<&str>, subdir: Option<&str>) -> Result<GitSource, PrepareError> {
        GitSource::parse(url, reference, subdir, &["https".to_owned()])
    }

    #[test]
    fn plain_https_is_taken() {
        for url in ["https://github.com/a/b", "https://host:8443/a/b.git", "https://[::1]/x"] {
            assert!(parse(url, Some("feature/x-1"), Some("packages/a")).is_ok(), "{url}");
        }
        assert_eq!(parse("https://h/a", None, Some("./")).unwrap().subdir, None);
    }

    #[test]
    fn other_schemes_options_and_credentials_are_refused() {
        for url in [
            "http://h/a",
            "ssh://h/a",
            "git@github.com:a/b",
            "file:///etc",
            "ext::sh -c id",
            "--upload-pack=touch x",
            "https://-oProxyCommand=x/a",
            "https://user:pw@h/a",
            "https://token@h/a",
            "https://h",
            "https:///a",
            "https://h/-x",
            "https://h/a?x=1",
            "https://h/a b",
            "https://h/a\n",
            "/etc",
            "a/b",
            "",
        ] {
            assert_eq!(parse(url, None, None).unwrap_err().code(), ErrorCode::SourceRefused, "{url}");
        }
        let error = parse("https://me:hunter2@h/a", None, None).unwrap_err().to_string();
        assert!(error.contains("--git-token-file") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn references_and_folders_that_are_options_or_climb_are_refused() {
        for bad in ["--upload-pack=x", "-b", "a..b", "a b", "", "a^{}", "a:b", "+a", "@{u}", "a\\b"] {
            assert!(parse("https://h/a", Some(bad), None).is_err(), "{bad}");
        }
        for bad in ["../x", "a/../b", "-x", "a//b", "a\\b", "a\n"] {
            assert!(parse("https://h/a", None, Some(bad)).is_err(), "{bad}");
        }
    }
}
