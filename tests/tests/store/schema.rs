//! Opening, migrating, and what a broken database says.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use broker::store::{Store, StoreConfig, StoreError};
use sqlx::{Connection, PgConnection, SqliteConnection};
use wire::ErrorCode;

use crate::on_both;
use crate::world::{World, open};

/// Set by a test that runs itself in several processes.
const OPEN_THIS: &str = "CLAUDEMESH_TEST_OPEN";

on_both! {
    opening_again_changes_nothing;
    a_newer_schema_does_not_stop_an_older_broker;
    an_applied_migration_that_was_edited_is_refused;
    a_closed_store_answers_with_an_error;
}

async fn opening_again_changes_nothing(world: World) {
    world.deploy(&world.key("echo"), 1).await.expect("deploys");
    let before = world.service(&world.key("echo")).await;
    let again = open(&world.url).await.expect("opens again");
    again.ping().await.expect("answers");
    let mut tx = again.read().await.expect("reads");
    assert_eq!(tx.services().find(&world.key("echo")).await.expect("finds"), before);
    assert_eq!(again.schema_version().await.expect("answers"), newest_migration());
}

async fn a_newer_schema_does_not_stop_an_older_broker(world: World) {
    world
        .damage(
            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
             SELECT 9999, 'future', installed_on, success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
        )
        .await;
    world.damage("ALTER TABLE service ADD COLUMN colour TEXT").await;
    let older = open(&world.url).await.expect("opens");
    assert_eq!(older.schema_version().await.expect("answers"), "9999_future");
    world.deploy(&world.key("echo"), 1).await.expect("deploys with statements prepared before and after");
    assert!(world.service(&world.key("echo")).await.is_some());
}

async fn an_applied_migration_that_was_edited_is_refused(world: World) {
    world.damage("UPDATE _sqlx_migrations SET checksum = substr(checksum, 2) WHERE version = 1").await;
    assert!(matches!(open(&world.url).await.err(), Some(StoreError::Migrate(_))));
}

async fn a_closed_store_answers_with_an_error(world: World) {
    world.store.close().await;
    assert_eq!(world.store.ping().await.expect_err("is closed").code(), ErrorCode::Internal);
    assert!(world.store.begin().await.is_err());
}

fn newest_migration() -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/sqlite");
    let files = std::fs::read_dir(folder).expect("a folder");
    let names = files.map(|f| f.expect("a file").file_name().into_string().expect("text"));
    names.max().expect("there is one").trim_end_matches(".sql").to_owned()
}

#[tokio::test]
async fn processes_that_migrate_sqlite_at_once_take_turns() {
    if let Ok(url) = std::env::var(OPEN_THIS) {
        return open_and_look(&url).await;
    }
    for _ in 0..5 {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}", dir.path().join("db").display());
        open_in_processes(&url, "schema::processes_that_migrate_sqlite_at_once_take_turns").await;
    }
}

#[tokio::test]
async fn processes_that_migrate_postgres_at_once_take_turns() {
    if let Ok(url) = std::env::var(OPEN_THIS) {
        return open_and_look(&url).await;
    }
    for _ in 0..3 {
        let Some(url) = tests::pg::empty_database().await else { return };
        open_in_processes(&url, "schema::processes_that_migrate_postgres_at_once_take_turns").await;
    }
}

async fn open_and_look(url: &str) {
    let store = open(url).await.expect("opens beside others");
    let mut tx = store.begin().await.expect("begins");
    assert_eq!(tx.meshes().list().await.expect("reads"), []);
    drop(tx);
    store.close().await;
}

/// Four processes run the named test of this very program.
async fn open_in_processes(url: &str, test: &str) {
    let mut processes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", test]).env(OPEN_THIS, url).kill_on_drop(true);
        processes.spawn(async move { tokio::time::timeout(Duration::from_secs(60), child.output()).await });
    }
    for outcome in processes.join_all().await {
        let output = outcome.expect("ends in time").expect("runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[tokio::test]
async fn a_new_file_is_private_and_survives_without_its_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a database");
    let url = format!("sqlite:{}", path.display());
    let store = open(&url).await.expect("opens");
    for entry in std::fs::read_dir(dir.path()).expect("a folder") {
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("its mode").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    store.close().await;
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1, "only the database is left");
}

#[tokio::test]
async fn a_url_of_another_kind_is_refused_and_never_quoted() {
    for url in
        ["", "mysql://u:hunter2@h/d", "/var/db", "postgres://u:hunter2@[::1/d", "postgres://u:hunter2@h:x/d"]
    {
        let error =
            Store::open(StoreConfig { url: url.into(), max_connections: 1 }).await.err().expect("is refused");
        assert!(matches!(error, StoreError::BadUrl), "{url}: {error:?}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let missing = open("sqlite:/nonexistent/dir/db").await.err().expect("is refused");
    assert!(missing.to_string().contains("/nonexistent/dir/db"), "{missing}");
}

#[tokio::test]
async fn a_full_disk_is_told_apart_on_sqlite() {
    let mut tiny = SqliteConnection::connect("sqlite::memory:").await.expect("connects");
    sqlx::query("CREATE TABLE t (b BLOB)").execute(&mut tiny).await.expect("creates");
    sqlx::query("PRAGMA max_page_count = 3").execute(&mut tiny).await.expect("limits");
    let full = sqlx::query("INSERT INTO t VALUES (zeroblob(1000000))").execute(&mut tiny).await;
    assert_eq!(StoreError::from(full.expect_err("is full")).code(), ErrorCode::DiskFull);
}

#[tokio::test]
async fn a_full_disk_is_told_apart_on_postgres() {
    let Some(url) = tests::pg::empty_database().await else { return };
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    let full = sqlx::query("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$");
    let full = full.execute(&mut connection).await.expect_err("is full");
    assert_eq!(StoreError::from(full).code(), ErrorCode::DiskFull);
}
