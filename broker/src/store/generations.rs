//! Generations: every version of a service that somebody asked for. Written once; a pin and the proof come later, once.

use std::collections::BTreeSet;

use vault::Sealed;
use wire::runner::Retain;
use wire::spec::{Pin, ServiceSpec, Source};
use wire::{Generation, MemberId, ServiceKey};

use super::row::{Place, to_json};
use super::services::Deploy;
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGeneration {
    pub key: ServiceKey,
    pub generation: Generation,
    pub spec: ServiceSpec,
    /// `wire::spec::Secrets`, sealed by whoever wrote it. `None`: there are no secrets.
    pub secrets: Option<Sealed>,
    pub pin: Option<Pin>,
    /// It has been ready.
    pub proven: bool,
    pub deployed_by: MemberId,
    pub created_at: i64,
}

pub struct Generations<'t> {
    pub(super) tx: &'t mut Tx,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT mesh_id, name, generation, spec, secrets, pin, proven, deployed_by, created_at FROM generation ",
            $rest
        )
    };
}

const FIND: &str = select!("WHERE mesh_id = $1 AND name = $2 AND generation = $3");
const LIST: &str = select!("WHERE mesh_id = $1 AND name = $2 ORDER BY generation DESC");
const PREVIOUS: &str = select!(
    "WHERE mesh_id = $1 AND name = $2 AND generation < $3 AND proven = 1 ORDER BY generation DESC LIMIT 1"
);
const INSERT: &str = "INSERT INTO generation (mesh_id, name, generation, spec, secrets, archive, pin, proven, \
    deployed_by, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9)";
const PROVE: &str = "UPDATE generation SET proven = 1, pin = COALESCE(pin, $4) \
    WHERE mesh_id = $1 AND name = $2 AND generation = $3 AND proven = 0";
const SET_PIN: &str = "UPDATE generation SET pin = $4 \
    WHERE mesh_id = $1 AND name = $2 AND generation = $3 AND pin IS NULL";
const NEEDED: &str = "SELECT archive, pin FROM generation";
const PRUNE: &str = "DELETE FROM generation WHERE mesh_id = $1 AND name = $2 \
    AND generation <= (SELECT latest FROM service WHERE mesh_id = $1 AND name = $2) - $3 \
    AND generation <> (SELECT target FROM service WHERE mesh_id = $1 AND name = $2) \
    AND generation <> COALESCE((SELECT MAX(g.generation) FROM generation g \
        JOIN service s ON s.mesh_id = g.mesh_id AND s.name = g.name \
        WHERE g.mesh_id = $1 AND g.name = $2 AND g.proven = 1 AND g.generation < s.target), 0)";

impl Generations<'_> {
    pub async fn find(
        &mut self,
        key: &ServiceKey,
        generation: Generation,
    ) -> Result<Option<StoredGeneration>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let row: Option<GenerationRow> = fetch_optional!(&mut *self.tx, FIND, mesh, name, generation.0)?;
        row.map(StoredGeneration::try_from).transpose()
    }

    /// Newest first.
    pub async fn list(&mut self, key: &ServiceKey) -> Result<Vec<StoredGeneration>, StoreError> {
        let rows: Vec<GenerationRow> = fetch_all!(&mut *self.tx, LIST, key.mesh.as_str(), key.name.as_str())?;
        rows.into_iter().map(StoredGeneration::try_from).collect()
    }

    /// The newest generation before `before` that was ever ready: where a rollback goes.
    pub async fn previous_proven(
        &mut self,
        key: &ServiceKey,
        before: Generation,
    ) -> Result<Option<StoredGeneration>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let row: Option<GenerationRow> = fetch_optional!(&mut *self.tx, PREVIOUS, mesh, name, before.0)?;
        row.map(StoredGeneration::try_from).transpose()
    }

    /// Fixes what an untried generation is made of. `false` when it has a pin already.
    pub async fn set_pin(
        &mut self,
        key: &ServiceKey,
        generation: Generation,
        pin: &Pin,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        Ok(execute!(&mut *self.tx, SET_PIN, mesh, name, generation.0, to_json(pin))? == 1)
    }

    /// What the runner must keep, over all meshes.
    pub async fn needed(&mut self) -> Result<Retain, StoreError> {
        let rows: Vec<NeededRow> = fetch_all!(&mut *self.tx, NEEDED)?;
        let (mut artefacts, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for NeededRow { archive, pin } in rows {
            blobs.extend(archive);
            if let Some(pin) = pin {
                let pin: Pin = Place { table: "generation", id: "of a retained pin" }.json("pin", &pin)?;
                artefacts.insert(pin.artefact);
            }
        }
        Ok(Retain { artefacts: artefacts.into_iter().collect(), blobs: blobs.into_iter().collect() })
    }

    /// Forgets all but the newest `keep`; never the target, and never where a rollback would go. Answers how many went.
    pub async fn prune(&mut self, key: &ServiceKey, keep: u32) -> Result<u64, StoreError> {
        execute!(&mut *self.tx, PRUNE, key.mesh.as_str(), key.name.as_str(), i64::from(keep))
    }
}

pub(super) async fn insert(tx: &mut Tx, deploy: Deploy<'_>) -> Result<(), StoreError> {
    let Deploy { key, generation, by, scope: _, spec, secrets, pin, starts: _, at } = deploy;
    let archive = match &spec.source {
        Source::Archive { sha256, .. } => Some(sha256.as_str()),
        Source::Npx { .. } | Source::Uvx { .. } | Source::Git { .. } => None,
    };
    execute!(
        tx,
        INSERT,
        key.mesh.as_str(),
        key.name.as_str(),
        generation.0,
        to_json(spec),
        secrets.map(Sealed::as_str),
        archive,
        pin.map(to_json),
        by.as_str(),
        at
    )?;
    Ok(())
}

pub(super) async fn mark_proven(
    tx: &mut Tx,
    key: &ServiceKey,
    generation: Generation,
    pin: Option<&Pin>,
) -> Result<bool, StoreError> {
    let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
    Ok(execute!(tx, PROVE, mesh, name, generation.0, pin.map(to_json))? == 1)
}

#[derive(sqlx::FromRow)]
struct NeededRow {
    archive: Option<String>,
    pin: Option<String>,
}

#[derive(sqlx::FromRow)]
struct GenerationRow {
    mesh_id: String,
    name: String,
    generation: i64,
    spec: String,
    secrets: Option<String>,
    pin: Option<String>,
    proven: i64,
    deployed_by: String,
    created_at: i64,
}

impl TryFrom<GenerationRow> for StoredGeneration {
    type Error = StoreError;
    fn try_from(row: GenerationRow) -> Result<Self, StoreError> {
        let GenerationRow { mesh_id, name, generation, spec, secrets, pin, proven, deployed_by, created_at } =
            row;
        let id = format!("{mesh_id}/{name}/{generation}");
        let place = Place { table: "generation", id: &id };
        Ok(Self {
            key: place.key(&mesh_id, &name)?,
            generation: Generation(generation),
            spec: place.json("spec", &spec)?,
            secrets: secrets.map(Sealed::from_stored),
            pin: pin.map(|pin| place.json("pin", &pin)).transpose()?,
            proven: proven == 1,
            deployed_by: place.member("deployed_by", &deployed_by)?,
            created_at,
        })
    }
}
