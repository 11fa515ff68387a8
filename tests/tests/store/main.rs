//! Every claim about the store, on SQLite and on PostgreSQL.

mod agents;
mod jail;
mod members;
mod observed;
mod schema;
mod services;
mod uploads;
mod vault;
mod world;

/// Makes two tests of each function: one for each database.
macro_rules! on_both {
    ($($name:ident;)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::world::World::sqlite().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                // `None` was said loudly, and fails where CI=true.
                if let Some(world) = crate::world::World::postgres().await {
                    super::$name(world).await;
                }
            })*
        }
    };
}

use on_both;
