//! Skills of a mesh and the files of their bundles.
//!
//! Not here: who may share and remove one, how large it may be (`crate::skills`).

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use wire::peer::skills::SkillFile;
use wire::{MemberId, MeshId, RawJson};

use super::row::{Count, Place, to_json};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

pub struct Skills<'t> {
    pub(super) tx: &'t mut Tx,
}

/// A skill without its instructions and files.
#[derive(Debug, Clone)]
pub struct SkillRow {
    pub name: String,
    pub author: MemberId,
    pub description: String,
    pub tags: Vec<String>,
    pub manifest: Option<RawJson>,
    pub created_at: i64,
    /// Paths of its files, sorted.
    pub files: Vec<String>,
}

/// A skill as it is written and read as a whole.
#[derive(Debug, Clone)]
pub struct Skill {
    pub row: SkillRow,
    pub instructions: String,
    pub files: Vec<SkillFile>,
    /// Bytes that it takes.
    pub size: i64,
}

const PUT: &str = "INSERT INTO skill (mesh_id, name, author, description, instructions, tags, manifest, size, created_at) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (mesh_id, name) DO UPDATE SET author = excluded.author, \
    description = excluded.description, instructions = excluded.instructions, tags = excluded.tags, \
    manifest = excluded.manifest, size = excluded.size";
const CLEAR_FILES: &str = "DELETE FROM skill_file WHERE mesh_id = $1 AND name = $2";
const PUT_FILE: &str =
    "INSERT INTO skill_file (mesh_id, name, path, content, executable) VALUES ($1, $2, $3, $4, $5)";
const AUTHOR: &str = "SELECT author FROM skill WHERE mesh_id = $1 AND name = $2";
const FIND: &str = "SELECT name, author, description, tags, manifest, size, created_at, instructions FROM skill \
    WHERE mesh_id = $1 AND name = $2";
const FILES: &str = "SELECT path, content, executable FROM skill_file WHERE mesh_id = $1 AND name = $2";
const LIST: &str = "SELECT name, author, description, tags, manifest, size, created_at, '' AS instructions FROM skill \
    WHERE mesh_id = $1";
const PATHS: &str = "SELECT name, path FROM skill_file WHERE mesh_id = $1";
const OTHERS: &str = "SELECT COUNT(*) AS n FROM skill WHERE mesh_id = $1 AND name <> $2";
const OTHERS_SIZE: &str =
    "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) AS n FROM skill WHERE mesh_id = $1 AND name <> $2";
const REMOVE: &str = "DELETE FROM skill WHERE mesh_id = $1 AND name = $2";

impl Skills<'_> {
    /// Writes it in place of what had the name; the time of making stays that of the first.
    pub async fn put(&mut self, mesh: &MeshId, skill: &Skill) -> Result<(), StoreError> {
        let Skill { row, instructions, files, size } = skill;
        let SkillRow { name, author, description, tags, manifest, created_at, files: _ } = row;
        let manifest = manifest.as_ref().map(|manifest| manifest.get());
        execute!(
            &mut *self.tx,
            PUT,
            mesh.as_str(),
            name,
            author.as_str(),
            description,
            instructions,
            to_json(tags),
            manifest,
            size,
            created_at
        )?;
        execute!(&mut *self.tx, CLEAR_FILES, mesh.as_str(), name)?;
        for SkillFile { path, content, executable } in files {
            let executable = i64::from(*executable);
            execute!(&mut *self.tx, PUT_FILE, mesh.as_str(), name, path, content, executable)?;
        }
        Ok(())
    }

    pub async fn author(&mut self, mesh: &MeshId, name: &str) -> Result<Option<MemberId>, StoreError> {
        let row: Option<AuthorRow> = fetch_optional!(&mut *self.tx, AUTHOR, mesh.as_str(), name)?;
        let id = format!("{mesh}/{name}");
        let place = Place { table: "skill", id: &id };
        row.map(|row| place.member("author", &row.author)).transpose()
    }

    pub async fn find(&mut self, mesh: &MeshId, name: &str) -> Result<Option<Skill>, StoreError> {
        let row: Option<Columns> = fetch_optional!(&mut *self.tx, FIND, mesh.as_str(), name)?;
        let Some(row) = row else { return Ok(None) };
        let rows: Vec<FileRow> = fetch_all!(&mut *self.tx, FILES, mesh.as_str(), name)?;
        let mut files: Vec<SkillFile> = rows.into_iter().map(SkillFile::from).collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let paths = files.iter().map(|file| file.path.clone()).collect();
        let (instructions, size) = (row.instructions.clone(), row.size);
        Ok(Some(Skill { row: row.read(mesh, paths)?, instructions, files, size }))
    }

    /// All of a mesh, by name.
    pub async fn list(&mut self, mesh: &MeshId) -> Result<Vec<SkillRow>, StoreError> {
        let rows: Vec<Columns> = fetch_all!(&mut *self.tx, LIST, mesh.as_str())?;
        let paths: Vec<PathRow> = fetch_all!(&mut *self.tx, PATHS, mesh.as_str())?;
        let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for PathRow { name, path } in paths {
            of.entry(name).or_default().push(path);
        }
        let read = |row: Columns| {
            let mut files = of.remove(&row.name).unwrap_or_default();
            files.sort_unstable();
            row.read(mesh, files)
        };
        let mut list = rows.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        // Each database has an order of its own for text.
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// How many skills there are besides this one, and the bytes that they take.
    pub async fn others(&mut self, mesh: &MeshId, name: &str) -> Result<(i64, i64), StoreError> {
        let count: Option<Count> = fetch_optional!(&mut *self.tx, OTHERS, mesh.as_str(), name)?;
        let size: Option<Count> = fetch_optional!(&mut *self.tx, OTHERS_SIZE, mesh.as_str(), name)?;
        Ok((count.map_or(0, |row| row.n), size.map_or(0, |row| row.n)))
    }

    /// `false` when there is none.
    pub async fn remove(&mut self, mesh: &MeshId, name: &str) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, REMOVE, mesh.as_str(), name)? == 1)
    }
}

#[derive(sqlx::FromRow)]
struct AuthorRow {
    author: String,
}

#[derive(sqlx::FromRow)]
struct Columns {
    name: String,
    author: String,
    description: String,
    tags: String,
    manifest: Option<String>,
    size: i64,
    created_at: i64,
    instructions: String,
}

impl Columns {
    fn read(self, mesh: &MeshId, files: Vec<String>) -> Result<SkillRow, StoreError> {
        let Self { name, author, description, tags, manifest, size: _, created_at, instructions: _ } = self;
        let id = format!("{mesh}/{name}");
        let place = Place { table: "skill", id: &id };
        Ok(SkillRow {
            author: place.member("author", &author)?,
            tags: place.json("tags", &tags)?,
            manifest: manifest
                .map(RawValue::from_string)
                .transpose()
                .map_err(|_| place.broken("manifest"))?,
            name,
            description,
            created_at,
            files,
        })
    }
}

#[derive(sqlx::FromRow)]
struct PathRow {
    name: String,
    path: String,
}

#[derive(sqlx::FromRow)]
struct FileRow {
    path: String,
    content: String,
    executable: i64,
}

impl From<FileRow> for SkillFile {
    fn from(row: FileRow) -> Self {
        let FileRow { path, content, executable } = row;
        Self { path, content, executable: executable != 0 }
    }
}
