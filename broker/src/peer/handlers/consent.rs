//! Agreeing that a service opens one's entries.

use wire::peer::hosting::McpDeployStatus;
use wire::peer::vault::{McpConsent, McpConsentAsk, McpConsentAsked};

use crate::deploy::{self, Agreed};
use crate::error::FrameError;
use crate::peer::dispatch::Asked;

/// Answers what there is to sign.
pub async fn ask(asked: &Asked, frame: McpConsentAsk) -> Result<(), FrameError> {
    let Asked { broker, caller, view, .. } = asked;
    let ask = deploy::asked(broker, caller, view, &frame.server_name).await?.map(Box::new);
    asked.answer(&McpConsentAsked { ask }).await;
    Ok(())
}

/// Takes a signature. `None`: nothing starts by it, and the answer is given.
pub async fn agree(asked: &Asked, frame: McpConsent) -> Result<Option<deploy::Change>, FrameError> {
    let Asked { broker, caller, view, .. } = asked;
    match deploy::agree(broker, caller, view, frame).await? {
        Agreed::Starts(change) => Ok(Some(change)),
        Agreed::Kept(key, generation) => {
            let status =
                McpDeployStatus { generation: Some(generation.0), ..deploy::plain_status(&key, "running") };
            asked.answer(&status).await;
            Ok(None)
        }
    }
}
