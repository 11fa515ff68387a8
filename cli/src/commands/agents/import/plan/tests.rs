//! What becomes of the commands that people have in their configurations.

use super::*;
use crate::commands::agents::clients::Style;
use crate::commands::agents::text::Format;

fn found(base: &Path, line: &str, env: &[(&str, &str)]) -> Found {
    let mut words = line.split(' ').map(str::to_owned);
    let program = Program {
        command: words.next().unwrap(),
        args: words.collect(),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let place = Place {
        title: "Claude Code".into(),
        file: "/f".into(),
        format: Format::Json,
        style: Style::Parts { has_type: true },
        path: vec!["mcpServers".into(), "x".into()],
        is_shared: false,
        base: base.to_owned(),
    };
    Found { name: "x".into(), kind: Kind::Program(program), places: vec![place] }
}

fn verdict(line: &str) -> Verdict {
    judge(&found(Path::new("/nowhere"), line, &[]), None, "x", &[])
}

#[test]
fn packages_are_hosted_whatever_the_path_of_their_runner() {
    for line in ["npx -y @a/b --x", "/usr/bin/npx pkg", "uvx --from pkg tool", "bunx pkg", "uv tool run pkg"]
    {
        let Verdict::Host { source: Source::Package(words), .. } = verdict(line) else { panic!("{line}") };
        assert!(!words[0].contains('/'), "{words:?}");
    }
}

#[test]
fn what_stays_says_why() {
    for (line, word) in [
        ("docker run -i x/y", "container"),
        ("node /nowhere/at/all.js", "not there"),
        ("npx -y pkg --api-key abc", "--api-key"),
        ("npx -y pkg --token=abc", "--token"),
        ("npx -y pkg postgres://u:p@h/db", "number 3"),
        ("sh -x foo", "can be hosted"),
    ] {
        let Verdict::Leave(why) = verdict(line) else { panic!("{line}") };
        assert!(why.contains(word), "{line}: {why}");
        assert!(!why.contains("abc") && !why.contains("u:p"), "{why}");
    }
    let found = found(Path::new("/"), "npx pkg", &[]);
    assert!(
        matches!(judge(&found, None, "x", &["x".into()]), Verdict::Leave(why) if why.contains("already"))
    );
}

#[test]
fn a_script_is_hosted_with_the_project_around_it_but_never_with_a_whole_home() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let project = home.join("code/mine");
    std::fs::create_dir_all(project.join("dist")).unwrap();
    std::fs::write(project.join("package.json"), "{}").unwrap();
    std::fs::write(home.join("package.json"), "{}").unwrap();
    std::fs::write(project.join("dist/index.js"), "").unwrap();
    std::fs::write(home.join("code/loose.js"), "").unwrap();
    let judged = |line: &str| judge(&found(&project, line, &[]), Some(&home), "x", &[]);
    let Verdict::Host { source, .. } = judged("node dist/index.js --fast") else { panic!() };
    assert_eq!(
        source,
        Source::Folder {
            root: project.clone(),
            entry: Some("dist/index.js".into()),
            args: vec!["--fast".into()]
        }
    );
    assert!(matches!(judged("node ../loose.js"), Verdict::Leave(why) if why.contains("make it a project")));
}

#[test]
fn secrets_are_known_by_their_names_and_by_their_looks() {
    let env = [
        ("GITHUB_TOKEN", "x"),
        ("DATABASE_URL", "postgres://u:p@h/d"),
        ("OTHER", "ghp_abc"),
        ("LANG", "C"),
        ("URL", "https://a.b/c:d@e"),
        ("EMPTY_KEY", ""),
    ];
    let Verdict::Host { env, .. } = judge(&found(Path::new("/"), "npx pkg", &env), None, "x", &[]) else {
        panic!()
    };
    let secret: Vec<&str> = env.iter().filter(|v| v.is_secret).map(|v| v.name.as_str()).collect();
    assert_eq!(secret, ["GITHUB_TOKEN", "DATABASE_URL", "OTHER"]);
}

#[test]
fn what_a_machine_made_goes_into_the_vault_whatever_it_is_called() {
    for (name, text, is_secret) in [
        ("NOTION", "ntn_4Gh7s8Kd02mVb5Qw9XyZ", true),
        ("APP", "9f86d081884c7d659a2feaa0c55ad015", true),
        ("DB_PASS", "short", true),
        ("DSN", "x", true),
        ("EMPTY_TOKEN", "", false),
        ("MODEL", "claude-sonnet-4-5-20250929", false),
        ("ENDPOINT", "https://Api7.example.com/v2/Things99", false),
        ("FOLDER", "/Users/Ana/Projects2026/x1", false),
        ("LEVEL", "info", false),
    ] {
        let found = found(Path::new("/nowhere"), "npx pkg", &[(name, text)]);
        let Verdict::Host { env, .. } = judge(&found, None, "x", &[]) else { panic!("{name}") };
        assert_eq!(env[0].is_secret, is_secret, "{name}");
    }
}
