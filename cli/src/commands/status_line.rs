//! `status-line`: one line for the client.

use crate::failure::Failure;
use crate::here::Here;

pub async fn status_line(_here: &Here) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
