//! Keys and records through changes of the root, rotations, and ends in the middle of them.

use tempfile::TempDir;
use wire::spec::{ServiceSpec, Source};
use wire::{MemberId, PublicKey, Scope, ServiceName};

use super::*;
use crate::store::{ActKind, Deploy, StoreConfig};

const PLAIN: &[u8] = b"{\"env\":{\"KEY\":\"hunter2\"}}";
/// More than two batches.
const RECORDS: i64 = 2 * BATCH + 20;

struct World {
    store: Store,
    mesh: MeshId,
    member: MemberId,
    _dir: TempDir,
}

fn root(seed: &str) -> AtRestKey {
    AtRestKey::from_hex(&seed.repeat(32)).expect("a key")
}

fn under(seeds: &[&str]) -> AtRest {
    AtRest::new(seeds.iter().map(|seed| root(seed)).collect()).expect("a root")
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().expect("temp dir");
        let url = format!("sqlite:{}", dir.path().join("broker.db").display());
        let store = Store::open(StoreConfig { url, max_connections: 2 }).await.expect("opens");
        let owner = PublicKey::parse(&"ab".repeat(32)).expect("key");
        let made = crate::bootstrap(&store, "acme", &owner, "Olga").await.expect("mesh");
        Self { store, mesh: made.mesh, member: made.member, _dir: dir }
    }

    fn key(&self, name: &str) -> ServiceKey {
        ServiceKey { mesh: self.mesh.clone(), name: ServiceName::parse(name).expect("name") }
    }

    /// Generations of one service, each sealed by `seal`.
    async fn write(&self, name: &str, generations: std::ops::RangeInclusive<i64>, seal: Sealing<'_>) {
        let (key, spec) = (self.key(name), ServiceSpec::of(Source::Npx { package: "p".into(), bin: None }));
        let mut tx = self.store.begin().await.expect("begins");
        for n in generations {
            let text = n.to_string();
            let context = secrets_context(&key, &text);
            let sealed = match seal {
                Sealing::Root(root) => root.seal(&context, PLAIN),
                Sealing::AtRest(it) => it.seal(&mut tx, &self.mesh, &context, PLAIN).await.expect("seals"),
            };
            let deploy = Deploy {
                key: &key,
                generation: Generation(n),
                by: &self.member,
                scope: &Scope::Peer,
                spec: &spec,
                secrets: Some(&sealed),
                pin: None,
                starts: true,
                at: 1,
            };
            tx.services().deploy(deploy).await.expect("deploys");
        }
        tx.commit().await.expect("commits");
    }

    /// Opens every record, and answers under which keys they lie.
    async fn open_all(&self, at_rest: &AtRest) -> HashSet<String> {
        let mut tx = self.store.read().await.expect("reads");
        let mut keys = HashSet::new();
        for service in tx.services().list(&self.mesh).await.expect("lists") {
            for stored in tx.generations().list(&service.key).await.expect("lists") {
                let generation = stored.generation.to_string();
                let context = secrets_context(&stored.key, &generation);
                let sealed = stored.secrets.expect("has secrets");
                let plain = at_rest.open(&mut tx, &self.mesh, &context, &sealed).await.expect("opens");
                assert_eq!(plain.as_slice(), PLAIN);
                keys.insert(sealed.key_id().expect("a key").to_owned());
            }
        }
        keys
    }

    async fn keys(&self) -> Vec<(String, String, bool)> {
        let mut tx = self.store.read().await.expect("reads");
        let keys = tx.mesh_keys().of(&self.mesh).await.expect("reads");
        keys.into_iter().map(|key| (key.key_id, key.root_id, key.is_active)).collect()
    }

    fn act(&self) -> Act {
        Act {
            mesh: Some(self.mesh.clone()),
            at_ms: clock::now_ms(),
            act: ActKind::Rotated,
            who: "Olga".into(),
            entry: None,
            version: None,
            runner: None,
        }
    }

    async fn acts(&self) -> usize {
        let lines = crate::store::Lines { mesh: &self.mesh, owner: None, key: None, service: None, most: 10 };
        let mut tx = self.store.read().await.expect("reads");
        tx.ledger().acts(lines).await.expect("reads").len()
    }
}

#[derive(Clone, Copy)]
enum Sealing<'a> {
    Root(&'a AtRestKey),
    AtRest(&'a AtRest),
}

#[tokio::test]
async fn records_of_a_time_before_mesh_keys_open_and_are_sealed_anew_at_start() {
    let world = World::new().await;
    world.write("old", 1..=RECORDS, Sealing::Root(&root("a1"))).await;
    let at_rest = under(&["a1"]);
    assert_eq!(world.open_all(&at_rest).await, [root("a1").id().to_owned()].into());
    at_rest.settle(&world.store).await.expect("settles");
    let keys = world.keys().await;
    assert_eq!(keys.len(), 1);
    assert_eq!(world.open_all(&at_rest).await, [keys[0].0.clone()].into());
    at_rest.settle(&world.store).await.expect("settles again");
    assert_eq!(world.keys().await, keys);
}

#[tokio::test]
async fn a_new_root_takes_over_at_start_and_a_missing_one_is_named() {
    let world = World::new().await;
    world.write("old", 1..=2, Sealing::Root(&root("a1"))).await;
    let missing = under(&["b2"]).settle(&world.store).await.expect_err("is refused");
    assert!(missing.to_string().contains(root("a1").id()), "{missing}");
    let first = under(&["a1"]);
    first.settle(&world.store).await.expect("settles");
    let mut tx = world.store.begin().await.expect("begins");
    let sealed = first.seal_boot_key("boot", b"boot key");
    tx.runners().put_boot_key("boot", &sealed, 1).await.expect("stores");
    tx.commit().await.expect("commits");
    let (before, missing) = (world.keys().await, under(&["b2"]).settle(&world.store).await);
    assert!(missing.expect_err("is refused").to_string().contains(root("a1").id()));
    assert_eq!(world.keys().await, before, "nothing was changed");
    under(&["b2", "a1"]).settle(&world.store).await.expect("settles");
    let alone = under(&["b2"]);
    alone.settle(&world.store).await.expect("the old root is needed no more");
    assert_eq!(world.keys().await, [(before[0].0.clone(), root("b2").id().to_owned(), true)]);
    world.open_all(&alone).await;
    let mut tx = world.store.read().await.expect("reads");
    let sealed = tx.runners().boot_key("boot").await.expect("reads").expect("is there");
    assert_eq!(alone.open_boot_key("boot", &sealed).expect("opens").as_slice(), b"boot key");
    assert!(alone.open_boot_key("other", &sealed).is_err());
}

#[tokio::test]
async fn a_rotation_moves_every_record_and_its_old_key_goes() {
    let world = World::new().await;
    let at_rest = under(&["a1"]);
    world.write("a", 1..=RECORDS, Sealing::AtRest(&at_rest)).await;
    let before = world.open_all(&at_rest).await;
    let rotated = at_rest.rotate(&world.store, &world.mesh, &world.act()).await.expect("rotates");
    assert_eq!(rotated.records, RECORDS);
    assert!(!before.contains(&rotated.key));
    assert_eq!(world.open_all(&under(&["a1"])).await, [rotated.key.clone()].into());
    assert_eq!(world.keys().await, [(rotated.key, root("a1").id().to_owned(), true)]);
    assert_eq!(world.acts().await, 1);
}

/// How far a rotation came before the broker was killed.
#[derive(Debug, Clone, Copy)]
enum Killed {
    AfterBegin,
    AfterOneBatch,
    BeforeRetire,
}

async fn killed(world: &World, at: Killed) -> String {
    let at_rest = under(&["a1"]);
    let key = at_rest.begin(&world.store, &world.mesh, &world.act()).await.expect("begins");
    let mut last = None;
    loop {
        if matches!(at, Killed::AfterBegin) {
            return key;
        }
        let batch = at_rest.reseal_batch(&world.store, &world.mesh, last.as_ref()).await.expect("seals anew");
        match batch {
            Some(batch) if matches!(at, Killed::BeforeRetire) => last = Some(batch.last),
            _ => return key,
        }
    }
}

#[tokio::test]
async fn a_rotation_that_was_killed_anywhere_ends_at_the_next_start() {
    for at in [Killed::AfterBegin, Killed::AfterOneBatch, Killed::BeforeRetire] {
        let world = World::new().await;
        world.write("a", 1..=RECORDS, Sealing::AtRest(&under(&["a1"]))).await;
        let key = killed(&world, at).await;
        let next = under(&["a1"]);
        let between = world.open_all(&next).await;
        let expected = if matches!(at, Killed::AfterOneBatch) { 2 } else { 1 };
        assert_eq!((between.len(), world.keys().await.len()), (expected, 2), "{at:?}: old and new open");
        next.settle(&world.store).await.expect("settles");
        assert_eq!(world.open_all(&under(&["a1"])).await, [key.clone()].into(), "{at:?}");
        assert_eq!(world.keys().await.len(), 1, "{at:?}");
        let again = next.rotate(&world.store, &world.mesh, &world.act()).await.expect("rotates");
        assert_ne!(again.key, key, "{at:?}: the next one is a new one");
    }
}

#[tokio::test]
async fn a_rotation_that_failed_in_the_middle_is_gone_on_with_when_it_is_asked_for_again() {
    let world = World::new().await;
    let at_rest = under(&["a1"]);
    world.write("a", 1..=3, Sealing::AtRest(&at_rest)).await;
    let begun = at_rest.begin(&world.store, &world.mesh, &world.act()).await.expect("begins");
    let rotated = at_rest.rotate(&world.store, &world.mesh, &world.act()).await.expect("rotates");
    assert_eq!((rotated.key, rotated.records, world.keys().await.len()), (begun, 3, 1));
}

#[tokio::test]
async fn a_second_rotation_is_refused_while_one_runs() {
    let world = World::new().await;
    let at_rest = under(&["a1"]);
    let turn = Turn::take(&at_rest, &world.mesh).expect("is free");
    let refused = at_rest.rotate(&world.store, &world.mesh, &world.act()).await.expect_err("is refused");
    assert!(matches!(refused, AtRestError::Rotating), "{refused}");
    assert_eq!(FrameError::from(refused).code, ErrorCode::Conflict);
    drop(turn);
    at_rest.rotate(&world.store, &world.mesh, &world.act()).await.expect("rotates");
}

#[tokio::test]
async fn a_damaged_record_stays_is_named_and_stops_no_other() {
    let world = World::new().await;
    let at_rest = under(&["a1"]);
    world.write("a", 1..=2, Sealing::AtRest(&at_rest)).await;
    // A record at the place of another one.
    let mut tx = world.store.begin().await.expect("begins");
    let rows = tx.mesh_keys().sealed_by_others(&world.mesh, "none", None, 2).await.expect("reads");
    assert!(tx.mesh_keys().reseal(&rows[0], &rows[1].sealed).await.expect("writes"));
    tx.commit().await.expect("commits");
    let failed = at_rest.rotate(&world.store, &world.mesh, &world.act()).await.expect_err("is told");
    assert!(matches!(&failed, AtRestError::Record { generation: Generation(1), .. }), "{failed}");
    let mut tx = world.store.read().await.expect("reads");
    let active = tx.mesh_keys().active(&world.mesh).await.expect("reads").expect("is there");
    let left = tx.mesh_keys().sealed_by_others(&world.mesh, &active.key_id, None, 2).await.expect("reads");
    assert_eq!(left.len(), 1);
    drop(tx);
    assert_eq!(world.keys().await.len(), 2, "what it was sealed under is kept");
    under(&["a1"]).settle(&world.store).await.expect("a broker starts with it");
}

#[tokio::test]
async fn a_wrapped_key_of_another_row_is_not_taken() {
    let world = World::new().await;
    let at_rest = under(&["a1"]);
    world.write("a", 1..=1, Sealing::AtRest(&at_rest)).await;
    let (_, other) = at_rest.ring.new_mesh_key(&world.mesh);
    let mut tx = world.store.begin().await.expect("begins");
    let row = tx.mesh_keys().active(&world.mesh).await.expect("reads").expect("is there");
    tx.mesh_keys().rewrap(&row, root("a1").id(), &other).await.expect("writes");
    tx.commit().await.expect("commits");
    let mut tx = world.store.begin().await.expect("begins");
    let refused = under(&["a1"]).seal(&mut tx, &world.mesh, &["x"], PLAIN).await.expect_err("is refused");
    assert!(matches!(refused, AtRestError::Ring(RingError::Damaged)), "{refused}");
}
