//! Consents: which members signed which service as it is to run.
//!
//! Not here: whether one fits a service (crate `vault`); the runner, which opens, checks each itself.

use wire::vault::{Consent, ConsentDoc};
use wire::{MemberId, PublicKey, ServiceKey};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all};

/// Consents of one signer for one service: more generations than are kept of it.
pub const KEPT_CONSENTS: i64 = 20;

pub struct Consents<'t> {
    pub(super) tx: &'t mut Tx,
}

const PUT: &str = "INSERT INTO consent (mesh_id, name, signer, serial, member_id, doc, signature, stored_at) \
    SELECT s.mesh_id, s.name, $3, $4, $5, $6, $7, $8 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT DO NOTHING";
const PRUNE: &str = "DELETE FROM consent WHERE mesh_id = $1 AND name = $2 AND signer = $3 AND serial NOT IN \
    (SELECT c.serial FROM consent c WHERE c.mesh_id = $1 AND c.name = $2 AND c.signer = $3 \
    ORDER BY c.serial DESC LIMIT $4)";
const BY: &str = "SELECT signer, serial, doc, signature FROM consent WHERE mesh_id = $1 AND name = $2 AND signer = $3 \
    ORDER BY serial DESC";

impl Consents<'_> {
    /// Stores one. `service` has a plain name; `doc` is what the consent signs.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when its serial is not more than that of every consent of this signer for this service,
    /// or the service is gone.
    pub async fn put(
        &mut self,
        service: &ServiceKey,
        member: &MemberId,
        consent: &Consent,
        doc: &ConsentDoc,
        at: i64,
    ) -> Result<(), StoreError> {
        let Consent { signer, doc: text, signature } = consent;
        if let Some(newest) = self.newest_serial(service, signer).await?
            && newest >= doc.serial
        {
            return Err(StoreError::Conflict);
        }
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        let (signer, member) = (signer.as_str(), member.as_str());
        let rows = execute!(&mut *self.tx, PUT, mesh, name, signer, doc.serial, member, text, signature, at)?;
        if rows != 1 {
            return Err(StoreError::Conflict);
        }
        execute!(&mut *self.tx, PRUNE, mesh, name, signer, KEPT_CONSENTS)?;
        Ok(())
    }

    /// Newest first.
    pub async fn by(&mut self, service: &ServiceKey, signer: &PublicKey) -> Result<Vec<Consent>, StoreError> {
        let rows = self.rows_by(service, signer).await?;
        rows.into_iter().map(|row| Ok(row.read(service)?.1)).collect()
    }

    async fn newest_serial(
        &mut self,
        service: &ServiceKey,
        signer: &PublicKey,
    ) -> Result<Option<i64>, StoreError> {
        Ok(self.rows_by(service, signer).await?.first().map(|row| row.serial))
    }

    async fn rows_by(
        &mut self,
        service: &ServiceKey,
        signer: &PublicKey,
    ) -> Result<Vec<ConsentRow>, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        fetch_all!(&mut *self.tx, BY, mesh, name, signer.as_str())
    }
}

#[derive(sqlx::FromRow)]
struct ConsentRow {
    signer: String,
    serial: i64,
    doc: String,
    signature: String,
}

impl ConsentRow {
    fn read(self, service: &ServiceKey) -> Result<(i64, Consent), StoreError> {
        let Self { signer, serial, doc, signature } = self;
        let id = format!("{service}/{signer}/{serial}");
        let place = Place { table: "consent", id: &id };
        let signer = place.id("signer", PublicKey::parse, &signer)?;
        Ok((serial, Consent { signer, doc, signature }))
    }
}
