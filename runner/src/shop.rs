//! What every service of this runner shares, and where on disk things are.
//!
//! Here: configuration, workshop, events, paths. Not here: services.
//! Invariant: a path under the data directory is made of checked ids only.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wire::ServiceKey;

use crate::cell::Cells;
use crate::config::RunnerConfig;
use crate::events::Events;
use crate::prepare::Workshop;
use crate::vault::Vault;

/// An artefact this young may belong to a deploy that no report names yet.
const YOUNG: Duration = Duration::from_secs(600);

pub struct Shop {
    pub config: RunnerConfig,
    pub workshop: Workshop,
    pub events: Events,
    pub cells: Arc<Cells>,
    pub vault: Arc<Vault>,
    prepared: Mutex<Vec<(Instant, String)>>,
}

impl Shop {
    pub fn new(config: RunnerConfig, workshop: Workshop, cells: Arc<Cells>, vault: Vault) -> Self {
        let (vault, events) = (Arc::new(vault), Events::default());
        Self { config, workshop, events, cells, vault, prepared: Mutex::default() }
    }

    pub fn note_prepared(&self, artefact: &str) {
        let mut prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.retain(|(at, _)| at.elapsed() < YOUNG);
        prepared.push((Instant::now(), artefact.to_owned()));
    }

    /// Artefacts that were prepared a short while ago.
    pub fn young_artefacts(&self) -> Vec<String> {
        let prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.iter().filter(|(at, _)| at.elapsed() < YOUNG).map(|(_, name)| name.clone()).collect()
    }

    /// Everything that a service may keep.
    pub fn data_of(&self, key: &ServiceKey) -> PathBuf {
        self.config.data.join("services").join(key.mesh.as_str()).join(key.name.as_str())
    }

    /// `HOME` of all generations of a service.
    pub fn home_of(&self, key: &ServiceKey) -> PathBuf {
        self.data_of(key).join("home")
    }

    /// Where the cells' temporary directories are; emptied when the runner starts.
    pub fn tmp_root(&self) -> PathBuf {
        self.config.data.join("tmp")
    }
}
