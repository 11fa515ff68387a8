//! [`LISTEN`]: what a service says outside of calls, over a socket of `/v1/calls` until it closes.
//!
//! Not here: who hears what (see [`crate::audience`]).
//! Invariants: what happens after the first line is heard. It neither wakes the service nor keeps it awake, and ends with it.

use wire::ErrorCode;
use wire::runner::{LISTEN, LISTENING, Listen};

use super::calls::{Gone, Line};
use super::failure::ApiError;
use super::rpc::{Rpc, event_line};
use crate::audience::{AudienceError, Listener};
use crate::service::ServiceHandle;
use crate::service::door::DoorError;

impl From<AudienceError> for ApiError {
    fn from(e: AudienceError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

pub(super) async fn serve(service: &ServiceHandle, rpc: &Rpc<'_>, line: &mut Line) -> Result<(), Gone> {
    let mut listener = match join(service, rpc) {
        Ok(listener) => listener,
        Err(e) => return line.refuse(e).await,
    };
    tokio::select! {
        () = listener.tuned() => {}
        heard = line.hear() => return Err(over(heard)),
    }
    line.say(event_line(format!(r#"{{"method":"{LISTENING}"}}"#).as_bytes())).await?;
    let end = loop {
        tokio::select! {
            // The end first, then the caller; otherwise who is always told something would not hear of either.
            biased;
            () = service.bell.removed() => break ApiError::new(DoorError::Stopped.code(), DoorError::Stopped.to_string()),
            heard = line.hear() => return Err(over(heard)),
            event = listener.next() => match event {
                Ok(event) => line.say(event_line(&event)).await?,
                Err(e) => break e.into(),
            },
        }
    };
    line.refuse(end).await
}

/// Who listens says nothing more on this socket.
fn over<T>(_: T) -> Gone {
    Gone
}

fn join(service: &ServiceHandle, rpc: &Rpc<'_>) -> Result<Listener, ApiError> {
    let params = rpc.params.map_or("{}", |params| params.get());
    let listen: Listen = serde_json::from_str(params)
        .map_err(|e| ApiError::new(ErrorCode::InvalidArgs, format!("`params` of `{LISTEN}`: {e}")))?;
    service.bell.admits(rpc.caller.as_ref()).map_err(|e| ApiError::new(e.code(), e.to_string()))?;
    Ok(service.audience.join(listen, rpc.session.clone(), rpc.caller.clone())?)
}
