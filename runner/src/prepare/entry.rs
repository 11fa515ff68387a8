//! Which file of a git or archive project is started.
//!
//! Not here: the executables of published packages ([`super::launch::choose`]), bundles ([`super::bundle`]).

use std::path::Path;

use serde_json::Value;
use wire::ErrorCode;
use wire::spec::Runtime;

use super::bundle::joined;
use super::error::PrepareError;
use super::launch::{Launch, Word, choose, script};
use super::npm::{bins, inside, main_file};
use super::pypi::{self, VENV};
use super::requirement::normalise;

const NODE_FILES: [&str; 4] = ["dist/index.js", "build/index.js", "src/index.js", "index.js"];
const BUN_FILES: [&str; 5] = ["src/index.ts", "index.ts", "src/server.ts", "server.ts", "src/main.ts"];
const PYTHON_FILES: [&str; 4] = ["server.py", "src/server.py", "main.py", "src/main.py"];

/// A project below `tree/project`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Project<'a> {
    pub(crate) tree: &'a Path,
    /// Relative to the tree.
    pub(crate) project: &'a str,
    /// `--entry`.
    pub(crate) wanted: Option<&'a str>,
}

impl Project<'_> {
    pub(crate) fn dir(&self) -> std::path::PathBuf {
        self.tree.join(self.project)
    }

    fn has(&self, file: &str) -> Option<String> {
        inside(&self.dir(), file).map(|file| joined(self.project, &file))
    }

    fn file(&self, name: &str, path: &str, tool: &str) -> Result<Launch, PrepareError> {
        let argv = match tool {
            "bun" => vec![Word::Tool("bun".into()), Word::Path(path.to_owned())],
            "python" if path.ends_with(".py") => vec![self.python(), Word::Path(path.to_owned())],
            _ => script(self.tree, path)?,
        };
        Ok(Launch { name: name.to_owned(), argv })
    }

    /// The project's environment, or the runner's Python for a lone file.
    fn python(&self) -> Word {
        match self.tree.join(VENV).is_dir() {
            true => Word::Path(format!("{VENV}/bin/python")),
            false => Word::Tool("python".into()),
        }
    }
}

/// What a person wrote for `--entry`: a plain path inside the project.
pub(crate) fn check_wanted(entry: &str) -> Result<(), PrepareError> {
    let bad = entry.is_empty()
        || entry.len() > 500
        || entry.starts_with(['/', '-'])
        || entry.chars().any(|c| c.is_control() || c == '\\')
        || entry.split('/').any(|part| part == "..");
    if bad {
        Err(PrepareError::refused("`--entry` is a plain path of a file inside the project"))
    } else {
        Ok(())
    }
}

fn missing(what: &str) -> PrepareError {
    PrepareError::new(ErrorCode::EntryNotFound, what)
}

/// The file that package.json declares, whether it exists or not (a build may make it).
pub(crate) fn declared(project: Project<'_>, manifest: &Value) -> Option<String> {
    if let Some(wanted) = project.wanted {
        return Some(wanted.to_owned());
    }
    let own = own_name(manifest);
    let bins = bins(manifest, &own);
    let bin = bins.iter().find(|(name, _)| *name == own).or(bins.first()).map(|(_, file)| file.clone());
    bin.or_else(|| manifest["main"].as_str().map(str::to_owned))
}

fn own_name(manifest: &Value) -> String {
    manifest["name"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned()
}

pub(crate) fn node(project: Project<'_>, manifest: &Value, runtime: Runtime) -> Result<Launch, PrepareError> {
    let tool = if runtime == Runtime::Bun { "bun" } else { "node" };
    if let Some(wanted) = project.wanted {
        let path = project
            .has(wanted)
            .ok_or_else(|| missing(&format!("the project has no file `{wanted}`; check `--entry`")))?;
        return project.file(wanted, &path, tool);
    }
    let own = own_name(manifest);
    let mut found = Vec::new();
    for (name, file) in bins(manifest, &own) {
        if let Some(path) = project.has(&file) {
            found.push(project.file(&name, &path, tool)?);
        }
    }
    if !found.is_empty() {
        return choose(&found, None, &own).cloned().map_err(by_entry);
    }
    let dir = project.dir();
    let main = manifest["main"].as_str().and_then(|_| main_file(&dir, manifest));
    let files = NODE_FILES.iter().chain(BUN_FILES.iter().filter(|_| runtime == Runtime::Bun));
    let path = main
        .map(|file| joined(project.project, &file))
        .or_else(|| files.clone().find_map(|f| project.has(f)));
    let Some(path) = path else {
        let listed = files.copied().collect::<Vec<_>>().join(", ");
        return Err(missing(&format!(
            "nothing to start: looked for `bin` and `main` of package.json, then {listed}; name it with `--entry FILE`"
        )));
    };
    project.file(&own, &path, tool)
}

/// A project chooses by file, a package by executable.
fn by_entry(error: PrepareError) -> PrepareError {
    let text = error
        .to_string()
        .replace("the package has", "the project has")
        .replace("`--bin NAME`", "`--entry FILE`");
    PrepareError::new(error.code(), text)
}

pub(crate) fn python(project: Project<'_>, manifest: &toml::Table) -> Result<Launch, PrepareError> {
    let scripts = scripts(manifest);
    let own =
        manifest.get("project").and_then(|p| p.get("name")).and_then(toml::Value::as_str).unwrap_or_default();
    let installed = |script: &&String| project.tree.join(VENV).join("bin").join(script).is_file();
    let launches: Vec<Launch> = scripts.iter().filter(installed).map(|script| pypi::launch(script)).collect();
    if let Some(wanted) = project.wanted {
        if let Some(launch) = launches.iter().find(|launch| launch.name == wanted) {
            return Ok(launch.clone());
        }
        let path = project
            .has(wanted)
            .ok_or_else(|| missing(&format!("the project has no file `{wanted}`; check `--entry`")))?;
        return project.file(wanted, &path, "python");
    }
    if !launches.is_empty() {
        let namesake = launches.iter().find(|launch| normalise(&launch.name) == normalise(own));
        return namesake.map(Ok).unwrap_or_else(|| choose(&launches, None, own)).cloned().map_err(by_script);
    }
    let Some(path) = PYTHON_FILES.iter().find_map(|file| project.has(file)) else {
        let listed = PYTHON_FILES.join(", ");
        return Err(missing(&format!(
            "nothing to start: looked for [project.scripts], then {listed}; name it with `--entry FILE`"
        )));
    };
    project.file(own, &path, "python")
}

fn by_script(error: PrepareError) -> PrepareError {
    let text = error
        .to_string()
        .replace("the package has", "the project has")
        .replace("`--bin NAME`", "`--entry NAME`");
    PrepareError::new(error.code(), text)
}

pub(crate) fn scripts(manifest: &toml::Table) -> Vec<String> {
    let table = manifest.get("project").and_then(|p| p.get("scripts")).and_then(toml::Value::as_table);
    let fits = |name: &&String| !name.is_empty() && !name.starts_with(['.', '-']) && !name.contains('/');
    table.map(|scripts| scripts.keys().filter(fits).cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join("src").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn project<'a>(dir: &'a tempfile::TempDir, wanted: Option<&'a str>) -> Project<'a> {
        Project { tree: dir.path(), project: "src", wanted }
    }

    fn last(launch: Result<Launch, PrepareError>) -> Word {
        launch.unwrap().argv.pop().unwrap()
    }

    #[test]
    fn a_node_project_starts_its_bin_then_main_then_the_usual_files() {
        let path = |p: &str| Word::Path(p.into());
        let dir = tree(&["cli.js", "lib/main.js", "build/index.js", "index.js"]);
        let start = |manifest: Value| last(node(project(&dir, None), &manifest, Runtime::Node));
        assert_eq!(
            start(json!({"name": "@s/x", "bin": {"a": "lib/main.js", "x": "cli.js"}})),
            path("src/cli.js")
        );
        assert_eq!(start(json!({"bin": "cli.js", "main": "lib/main.js"})), path("src/cli.js"));
        assert_eq!(start(json!({"main": "./lib/main"})), path("src/lib/main.js"));
        assert_eq!(start(json!({})), path("src/build/index.js"));
        assert_eq!(
            last(node(project(&dir, Some("index.js")), &json!({}), Runtime::Node)),
            path("src/index.js")
        );
    }

    #[test]
    fn several_bins_of_a_project_are_chosen_by_entry() {
        let dir = tree(&["a.js", "b.js"]);
        let error = node(project(&dir, None), &json!({"bin": {"a": "a.js", "b": "b.js"}}), Runtime::Node)
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::EntryAmbiguous);
        assert!(error.to_string().contains("--entry FILE"), "{error}");
    }

    #[test]
    fn typescript_is_started_by_bun_only() {
        let dir = tree(&["src/index.ts"]);
        assert!(node(project(&dir, None), &json!({}), Runtime::Node).is_err());
        let launch = node(project(&dir, None), &json!({}), Runtime::Bun).unwrap();
        assert_eq!(launch.argv[0], Word::Tool("bun".into()));
    }

    #[test]
    fn nothing_to_start_says_what_was_looked_for() {
        let dir = tree(&["README.md"]);
        let error = python(project(&dir, None), &toml::Table::new()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::EntryNotFound);
        assert!(error.to_string().contains("src/server.py"), "{error}");
        assert!(node(project(&dir, Some("gone.js")), &json!({}), Runtime::Node).is_err());
    }

    #[test]
    fn a_python_project_starts_its_script_or_the_usual_file() {
        let dir = tree(&["main.py"]);
        let manifest: toml::Table =
            "[project]\nname='My_App'\n[project.scripts]\nmy-app='a:b'\nother='a:c'".parse().unwrap();
        assert_eq!(last(python(project(&dir, None), &manifest)), Word::Path("src/main.py".into()));
        std::fs::create_dir_all(dir.path().join("venv/bin")).unwrap();
        for script in ["my-app", "other"] {
            std::fs::write(dir.path().join("venv/bin").join(script), "").unwrap();
        }
        assert_eq!(last(python(project(&dir, None), &manifest)), Word::Path("venv/bin/my-app".into()));
        assert_eq!(
            last(python(project(&dir, Some("other")), &manifest)),
            Word::Path("venv/bin/other".into())
        );
    }

    #[test]
    fn an_entry_is_a_path_inside() {
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "-c", "a\\b", "a\nb"] {
            assert!(check_wanted(bad).is_err(), "{bad:?}");
        }
        assert!(check_wanted("dist/server.js").is_ok());
    }
}
