//! From columns to domain values, and back to text.
//!
//! A column that our own code can't have written is [`StoreError::Inconsistent`]: the row is named, the value is not.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::{BadId, MemberId, MeshId, ServiceKey, ServiceName};

use super::StoreError;

#[derive(sqlx::FromRow)]
pub(super) struct One {
    #[expect(dead_code, reason = "only the answer matters, not the number")]
    one: i64,
}

#[derive(sqlx::FromRow)]
pub(super) struct Count {
    pub(super) n: i64,
}

#[derive(sqlx::FromRow)]
pub(super) struct Applied {
    version: i64,
    description: String,
}

impl Applied {
    pub(super) fn name(&self) -> String {
        format!("{:04}_{}", self.version, self.description)
    }
}

/// Which row is being read, for the error.
pub(super) struct Place<'a> {
    pub(super) table: &'static str,
    pub(super) id: &'a str,
}

impl Place<'_> {
    pub(super) fn broken(&self, column: &'static str) -> StoreError {
        StoreError::Inconsistent { table: self.table, column, id: self.id.to_owned() }
    }

    pub(super) fn id<T>(
        &self,
        column: &'static str,
        parse: fn(&str) -> Result<T, BadId>,
        text: &str,
    ) -> Result<T, StoreError> {
        parse(text).map_err(|_| self.broken(column))
    }

    pub(super) fn mesh(&self, text: &str) -> Result<MeshId, StoreError> {
        self.id("mesh_id", MeshId::parse, text)
    }

    pub(super) fn member(&self, column: &'static str, text: &str) -> Result<MemberId, StoreError> {
        self.id(column, MemberId::parse, text)
    }

    pub(super) fn key(&self, mesh: &str, name: &str) -> Result<ServiceKey, StoreError> {
        Ok(ServiceKey { mesh: self.mesh(mesh)?, name: self.id("name", ServiceName::parse, name)? })
    }

    pub(super) fn json<T: DeserializeOwned>(
        &self,
        column: &'static str,
        text: &str,
    ) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|_| self.broken(column))
    }
}

/// The text form of a document.
pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our documents have text keys and can always be written as JSON")
}
