//! Secrets in a real runner: opened for what was agreed to, held back for everything else, through restarts and kills.

mod world;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vault::BoxKey;
use wire::vault::{EntryKind, VaultEntry, VaultState};
use world::World;
use world::broker::{CANARY, Person, boot_key, material, refer};

/// A runner that is trusted with the vault key of the mesh.
struct Trusted {
    world: World,
    owner: Person,
    key: BoxKey,
}

impl Trusted {
    async fn start() -> Self {
        let (world, owner, key) = (World::start(&[]).await, Person::new(1), BoxKey::generate());
        world.unlock().await;
        world.trust(&owner, &key).await;
        Self { world, owner, key }
    }

    /// A service with one variable from the vault, agreed to.
    async fn agreed(&self, name: &str, entries: &[VaultEntry]) -> Value {
        let mut wish = self.world.wish(&[]);
        refer(&mut wish, "TOKEN", Some(&self.owner), "token", None);
        let consent = self.owner.agree(name, &wish, &self.world.pin().await);
        wish["vault"] = material(entries, &[consent]);
        wish
    }

    fn token(&self, version: i64) -> VaultEntry {
        self.owner.text(&self.key, "token", version, &format!("{CANARY}-{version}"))
    }
}

#[tokio::test]
async fn a_service_waits_for_consent_and_then_gets_variables_and_files_which_are_booked_first() {
    let Trusted { world, owner, key } = Trusted::start().await;
    let mut wish = world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&owner), "token", None);
    refer(&mut wish, "CREDS", Some(&owner), "creds", Some("/secrets/creds.json"));
    let entries = [
        owner.text(&key, "token", 1, "${HOME}-stays"),
        owner.entry(&key, "creds", 4, EntryKind::File, b"{\"a\":1}\n"),
    ];
    wish["vault"] = material(&entries, &[]);
    let waiting = world.outcome("app", &wish).await;
    assert_eq!(waiting["phase"], "waiting", "{waiting}");
    assert_eq!(waiting["reason"]["code"], "awaiting_consent");
    let message = waiting["reason"]["message"].as_str().expect("text");
    assert!(message.contains("TOKEN ($vault:token)") && message.contains("$vault:creds:file:"), "{message}");
    assert_eq!(world.openings(0).await, Vec::<Value>::new());
    let call = world.call("app", "echo", json!({"text": "hi"})).await;
    assert_eq!(call["error"]["code"], "awaiting_consent", "{call}");
    // The report of who waits names the whole pin, which is what there is to agree to.
    let pin = serde_json::from_value(waiting["pin"].clone()).expect("a pin");
    wish["vault"] = material(&entries, &[owner.agree("app", &wish, &pin)]);
    world.apply("app", &wish).await;
    world.phase("app", "ready").await;
    assert_eq!(world.text("app", "env", json!({"name": "TOKEN"})).await, "${HOME}-stays");
    assert_eq!(world.text("app", "env", json!({"name": "CREDS"})).await, "/secrets/creds.json");
    assert_eq!(world.text("app", "read", json!({"path": "/secrets/creds.json"})).await, "{\"a\":1}\n");
    let booked = world.openings(0).await;
    let facts: Vec<_> = booked.iter().map(|o| (&o["seq"], &o["key"], &o["version"], &o["reason"])).collect();
    assert_eq!(facts.len(), 2);
    assert_eq!(facts[0], (&json!(1), &json!("creds"), &json!(4), &json!("start")));
    assert_eq!(facts[1], (&json!(2), &json!("token"), &json!(1), &json!("start")));
    assert_eq!(booked[0]["runner"], json!(world.vault().await.runner));
    assert_eq!(world.openings(1).await.len(), 1);
}

#[tokio::test]
async fn a_restarted_runner_restores_its_services_once_it_has_its_boot_key_and_grants_again() {
    let Trusted { mut world, owner, key } = Trusted::start().await;
    let mut wish = world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&owner), "token", None);
    let entries = [owner.text(&key, "token", 1, CANARY)];
    let consent = owner.agree("app", &wish, &world.pin().await);
    wish["vault"] = material(&entries, &[consent]);
    assert_eq!(world.outcome("app", &wish).await["phase"], "ready");
    let before = world.vault().await;
    world.signal_runner(Signal::SIGKILL);
    world.runner_ended().await;
    world.no_processes().await;
    let data = world.dir.path().join("data");
    let disk = everything_under(&data);
    assert!(!disk.windows(CANARY.len()).any(|bytes| bytes == CANARY.as_bytes()), "on the runner's disk");
    world.run().await;
    assert_eq!(world.vault().await.state, VaultState::Locked { boot_id: "b1".to_owned() });
    wish["proven"] = json!(true);
    world.apply("app", &wish).await;
    let locked = world.waits("app", "vault_locked").await;
    assert_eq!(locked["generation"], wish["generation"]);
    for (id, byte) in [("b2", "ab"), ("b1", "cd")] {
        let (status, failure) = world.send(Method::PUT, "/v1/vault/boot-key", boot_key(id, byte)).await;
        assert_eq!((status, &failure["code"]), (StatusCode::CONFLICT, &json!("vault_locked")), "{failure}");
        assert!(!failure.to_string().contains(&byte.repeat(3)), "{failure}");
    }
    world.unlock().await;
    world.waits("app", "runner_not_trusted").await;
    assert_eq!(world.vault().await.runner, before.runner, "the same runner");
    assert_eq!(world.vault().await.ledger, before.ledger);
    world.trust(&owner, &key).await;
    world.phase("app", "ready").await;
    assert_eq!(world.text("app", "env", json!({"name": "TOKEN"})).await, CANARY);
    world.call("app", "crash", json!({})).await;
    assert_eq!(world.text("app", "env", json!({"name": "TOKEN"})).await, CANARY);
    let reasons: Vec<_> = world.openings(0).await.iter().map(|o| o["reason"].clone()).collect();
    assert_eq!(reasons, ["start", "start", "restart"]);
}

fn everything_under(path: &std::path::Path) -> Vec<u8> {
    let mut all = vec![];
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            all.extend(everything_under(&entry.path()));
        } else if kind.is_file() {
            all.extend(std::fs::read(entry.path()).expect("readable"));
        }
    }
    all
}

#[tokio::test]
async fn a_service_that_falls_asleep_opens_again_when_it_wakes() {
    let host = Trusted::start().await;
    let mut wish = host.world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&host.owner), "token", None);
    wish["spec"]["idle_stop_s"] = json!(1);
    let consent = host.owner.agree("app", &wish, &host.world.pin().await);
    wish["vault"] = material(&[host.token(1)], &[consent]);
    host.world.outcome("app", &wish).await;
    host.world.phase("app", "idle").await;
    assert_eq!(host.world.text("app", "env", json!({"name": "TOKEN"})).await, format!("{CANARY}-1"));
    let reasons: Vec<_> = host.world.openings(0).await.iter().map(|o| o["reason"].clone()).collect();
    assert_eq!(reasons, ["start", "wake"]);
}

#[tokio::test]
async fn trust_that_is_taken_away_ends_what_runs_and_trust_that_comes_back_starts_it() {
    let host = Trusted::start().await;
    let wish = host.agreed("app", &[host.token(1)]).await;
    host.world.outcome("app", &wish).await;
    host.world.deploy("plain", &host.world.wish(&[])).await;
    let (status, _) = host.world.hold(&[]).await;
    assert_eq!(status, StatusCode::OK);
    let waiting = host.world.waits("app", "runner_not_trusted").await;
    assert_eq!(waiting["pid"], Value::Null);
    assert_eq!(host.world.text("plain", "echo", json!({"text": "untouched"})).await, "untouched");
    host.world.trust(&host.owner, &host.key).await;
    host.world.phase("app", "ready").await;
}

#[tokio::test]
async fn a_generation_that_waits_leaves_the_one_before_it_serving() {
    let host = Trusted::start().await;
    let wish = host.agreed("app", &[host.token(1)]).await;
    host.world.outcome("app", &wish).await;
    let mut next = host.world.wish(&["polite"]);
    refer(&mut next, "TOKEN", Some(&host.owner), "token", None);
    next["vault"] = wish["vault"].clone();
    let waiting = host.world.outcome("app", &next).await;
    assert_eq!(waiting["reason"]["code"], "awaiting_consent", "the consent is for other arguments");
    let first = json!({"name": "TOKEN"});
    assert_eq!(host.world.text("app", "env", first.clone()).await, format!("{CANARY}-1"));
    // New material of the generation that serves touches nothing that runs.
    let born = host.world.text("app", "born", json!({})).await;
    let consent = host.owner.agree("app", &next, &host.world.pin().await);
    next["vault"] = material(&[host.token(2)], &[consent]);
    host.world.apply("app", &next).await;
    host.world
        .until("app", |report| (report["serving"]["generation"] == next["generation"]).then_some(()))
        .await;
    assert_eq!(host.world.text("app", "env", first).await, format!("{CANARY}-2"));
    assert_ne!(host.world.text("app", "born", json!({})).await, born);
    let born = host.world.text("app", "born", json!({})).await;
    next["vault"] = material(&[host.token(3)], &[]);
    host.world.apply("app", &next).await;
    assert_eq!(host.world.text("app", "born", json!({})).await, born);
}

#[tokio::test]
async fn asking_again_for_what_still_waits_is_no_news() {
    let host = Trusted::start().await;
    let mut wish = host.agreed("app", &[]).await;
    host.world.outcome("app", &wish).await;
    let revision = async || {
        let (_, report) = host.world.send(Method::GET, &host.world.path("app", ""), Bytes::new()).await;
        report["revision"].clone()
    };
    let before = revision().await;
    for _ in 0..5 {
        host.world.apply("app", &wish).await;
    }
    assert_eq!(revision().await, before, "who answers each change by asking again would never end");
    wish["vault"]["entries"] = json!([host.token(1)]);
    host.world.apply("app", &wish).await;
    host.world.phase("app", "ready").await;
}

#[tokio::test]
async fn a_removed_entry_is_remembered_also_when_the_service_can_not_be_installed() {
    let mut host = Trusted::start().await;
    let mut wish = host.agreed("app", &[]).await;
    let gone = host.owner.entry(&host.key, "token", 5, EntryKind::Gone, b"");
    wish["vault"]["entries"] = json!([gone]);
    let mut broken = wish.clone();
    broken["spec"]["source"]["sha256"] = json!("0".repeat(64));
    assert_eq!(host.world.outcome("broken", &broken).await["phase"], "failed");
    host.world.signal_runner(Signal::SIGKILL);
    host.world.runner_ended().await;
    host.world.run().await;
    host.world.unlock().await;
    host.world.trust(&host.owner, &host.key).await;
    wish["vault"]["entries"] = json!([host.token(4)]);
    assert_eq!(host.world.outcome("app", &wish).await["reason"]["code"], "vault_stale");
}

#[tokio::test]
async fn a_full_disk_holds_back_only_until_there_is_space() {
    let world = World::start(&["sample=50"]).await;
    let host = Trusted { world, owner: Person::new(1), key: BoxKey::generate() };
    host.world.unlock().await;
    host.world.trust(&host.owner, &host.key).await;
    let wish = host.agreed("app", &[host.token(1)]).await;
    let in_the_way = host.world.dir.path().join("data/vault/seen.json~");
    std::fs::create_dir(&in_the_way).expect("made");
    host.world.apply("app", &wish).await;
    host.world.waits("app", "ledger_failed").await;
    std::fs::remove_dir(&in_the_way).expect("removed");
    host.world.phase("app", "ready").await;
}

#[tokio::test]
async fn a_refusal_names_every_missing_reference_and_no_value() {
    let host = Trusted::start().await;
    let mut wish = host.agreed("app", &[host.token(1)]).await;
    refer(&mut wish, "FIRST", Some(&host.owner), "one", None);
    refer(&mut wish, "SECOND", Some(&host.owner), "two", Some("/run/secrets/two"));
    let waiting = host.world.outcome("app", &wish).await;
    assert_eq!(waiting["reason"]["code"], "vault_missing", "{waiting}");
    let message = waiting["reason"]["message"].as_str().expect("text");
    assert!(message.contains("FIRST ($vault:one)"), "{message}");
    assert!(message.contains("SECOND ($vault:two:file:/run/secrets/two)"), "{message}");
    assert!(!message.contains("TOKEN"), "{message}");
}

#[tokio::test]
async fn a_binary_value_is_refused_as_a_variable_and_given_as_a_file() {
    let host = Trusted::start().await;
    let binary = host.owner.entry(&host.key, "token", 1, EntryKind::File, b"\xff\0\xfe");
    let failed = host.world.outcome("app", &host.agreed("app", std::slice::from_ref(&binary)).await).await;
    assert_eq!(failed["phase"], "failed", "{failed}");
    assert_eq!(failed["reason"]["code"], "vault_error");
    let mut wish = host.world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&host.owner), "token", Some("/secrets/token"));
    let consent = host.owner.agree("app", &wish, &host.world.pin().await);
    wish["vault"] = material(&[binary], &[consent]);
    let ready = host.world.outcome("app", &wish).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
    let text = host.owner.entry(&host.key, "token", 2, EntryKind::File, "text ☃".as_bytes());
    let ready = host.world.outcome("b", &host.agreed("b", &[text]).await).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
    assert_eq!(host.world.text("b", "env", json!({"name": "TOKEN"})).await, "text ☃");
}

#[tokio::test]
async fn a_light_jail_refuses_files_of_secrets_before_anything_is_opened() {
    let world = World::start(&["tier=light"]).await;
    let (owner, key) = (Person::new(1), BoxKey::generate());
    world.unlock().await;
    world.trust(&owner, &key).await;
    let mut wish = world.wish(&[]);
    wish["policy"] = json!({"min_isolation": "light"});
    wish["spec"]["isolation"] = json!("light");
    refer(&mut wish, "TOKEN", Some(&owner), "token", Some("/secrets/token"));
    wish["vault"] = material(&[owner.text(&key, "token", 1, CANARY)], &[]);
    let failed = world.outcome("app", &wish).await;
    assert_eq!(failed["reason"]["code"], "isolation_unavailable", "{failed}");
    assert!(failed["reason"]["message"].as_str().expect("text").contains("TOKEN"));
    assert_eq!(world.vault().await.last_opening, 0);
}

#[tokio::test]
async fn without_a_ledger_nothing_is_opened_and_services_without_secrets_run() {
    let mut host = Trusted::start().await;
    let wish = host.agreed("app", &[host.token(1)]).await;
    host.world.signal_runner(Signal::SIGKILL);
    host.world.runner_ended().await;
    let ledger = host.world.dir.path().join("data/vault/ledger");
    std::fs::remove_file(&ledger).expect("there");
    std::fs::create_dir(&ledger).expect("made");
    host.world.run().await;
    host.world.unlock().await;
    host.world.trust(&host.owner, &host.key).await;
    let waiting = host.world.outcome("app", &wish).await;
    assert_eq!((&waiting["phase"], &waiting["reason"]["code"]), (&json!("waiting"), &json!("ledger_failed")));
    assert_eq!(host.world.deploy("plain", &host.world.wish(&[])).await["phase"], "ready");
}

#[tokio::test]
async fn killed_at_any_moment_of_making_its_key_a_runner_has_the_whole_key_or_none() {
    let mut world = World::start(&[]).await;
    let key = world.dir.path().join("data/vault/runner.key");
    let mut known = None;
    for delay_us in [0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 20_000] {
        let request = world.request(Method::PUT, "/v1/vault/boot-key", boot_key("b1", "ab"));
        // Not a wait for something: the moment of the kill is meant to be any.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(delay_us), request).await;
        world.signal_runner(Signal::SIGKILL);
        world.runner_ended().await;
        world.run().await;
        match world.vault().await.state {
            VaultState::New => assert!(known.is_none() && !key.exists(), "a key was lost"),
            VaultState::Locked { .. } => {
                world.unlock().await;
                let id = world.vault().await.runner.expect("open");
                assert_eq!(*known.get_or_insert(id.clone()), id, "it never changes");
            }
            other => panic!("after {delay_us} µs it is {other:?}"),
        }
    }
    world.unlock().await;
    let id = world.vault().await.runner.expect("open");
    assert_eq!(known.unwrap_or_else(|| id.clone()), id);
}

#[tokio::test]
async fn each_custody_keeps_its_word() {
    let boot = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(boot.path(), "ab".repeat(32)).expect("written");
    let setting = format!("boot_key={}", boot.path().display());
    let mut world = World::start(&["custody=file", &setting]).await;
    let first = world.vault().await;
    assert_eq!(first.state, VaultState::Open);
    let (status, failure) = world.send(Method::PUT, "/v1/vault/boot-key", boot_key("b1", "ab")).await;
    assert_eq!((status, &failure["code"]), (StatusCode::CONFLICT, &json!("vault_locked")));
    world.signal_runner(Signal::SIGKILL);
    world.runner_ended().await;
    world.run().await;
    assert_eq!(world.vault().await.runner, first.runner);
    let mut world = World::start(&["custody=memory"]).await;
    let first = world.vault().await;
    assert_eq!(first.state, VaultState::Open);
    world.signal_runner(Signal::SIGKILL);
    world.runner_ended().await;
    world.run().await;
    assert_ne!(world.vault().await.runner, first.runner, "its owner has to trust it again");
    assert!(!world.dir.path().join("data/vault/runner.key").exists());
}

#[tokio::test]
async fn requests_to_the_vault_that_make_no_sense_are_refused_without_an_echo() {
    let world = World::start(&[]).await;
    let put = async |path: &str, body: &str| {
        let (status, failure) = world.send(Method::PUT, path, Bytes::from(body.to_owned())).await;
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
        (status.as_u16(), failure["code"].as_str().unwrap_or_default().to_owned())
    };
    let bad = (400, "invalid_args".to_owned());
    for body in [
        r#"{"boot_id":"b1","key":"hunter2"}"#,
        r#"{"boot_id":"b1","key":{"hunter2":1}}"#,
        r#"{"boot_id":"b1","hunter2":1}"#,
        r#""hunter2""#,
        "hunter2",
        r#"{"boot_id":"a b","key":"abababababababababababababababababababababababababababababababab"}"#,
    ] {
        assert_eq!(put("/v1/vault/boot-key", body).await, bad, "{body}");
    }
    assert_eq!(world.vault().await.state, VaultState::New);
    assert_eq!(put("/v1/vault/meshes/short", r#"{"grants":[]}"#).await, (400, "invalid_name".to_owned()));
    let mesh = format!("/v1/vault/meshes/{}", world::broker::MESH);
    assert_eq!(put(&mesh, r#"{"grants":[]}"#).await, (503, "vault_locked".to_owned()));
    assert_eq!(put(&mesh, "[]").await, bad);
}

#[tokio::test]
async fn the_runners_memory_is_not_for_others() {
    let world = World::start(&[]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.runner_pid())).expect("there");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
    let numbers: Vec<&str> = core.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers, ["1", "1"], "{core}");
    world.unlock().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.runner_pid())).expect("there");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line").trim();
    assert_ne!(locked, "0 kB", "its key could be swapped out");
    // What is not dumpable belongs to root, whoever runs it (proc(5)).
    let environ = std::fs::metadata(format!("/proc/{}/environ", world.runner_pid())).expect("there");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&environ), 0);
}

/// How often this is in the writable memory of a process, and the rest of what was found with it.
fn in_memory(pid: i32, needle: &[u8]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("readable");
    let mut found = vec![];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let at = |text| u64::from_str_radix(text, 16).expect("hex");
        let mut bytes = vec![0; usize::try_from(at(to) - at(from)).expect("fits").min(1 << 30)];
        // What can't be read is nobody's memory (guard pages, say).
        let read = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, at(from)).unwrap_or(0);
        for place in memchr::memmem::find_iter(&bytes[..read], needle) {
            let around = &bytes[place.saturating_sub(40)..(place + needle.len() + 40).min(read)];
            found.push(format!("{line}: {}", around.escape_ascii()));
        }
    }
    found
}

fn children_of(pid: i32) -> Vec<i32> {
    let of_thread = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("there").flatten();
    let text: String = tasks.filter_map(|task| of_thread(task).ok()).collect();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[tokio::test]
async fn the_runners_memory_holds_a_value_once_to_mask_it_and_not_at_all_when_nothing_runs_with_it() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root reads this memory");
    }
    let (world, owner, key) = (World::start(&[]).await, Person::new(1), BoxKey::generate());
    let (status, _) = world.send(Method::PUT, "/v1/vault/boot-key", boot_key("b1", "3c")).await;
    assert_eq!(status, StatusCode::OK);
    world.trust(&owner, &key).await;
    let (value, file) = ("cnry-1-a-value-of-a-variable-d1f8", "cnry-2-what-is-in-a-file-99aa");
    let mut wish = world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&owner), "token", None);
    refer(&mut wish, "CREDS", Some(&owner), "creds", Some("/secrets/creds"));
    let entries = [
        owner.text(&key, "token", 1, value),
        owner.entry(&key, "creds", 1, EntryKind::File, file.as_bytes()),
    ];
    wish["vault"] = material(&entries, &[owner.agree("app", &wish, &world.pin().await)]);
    let ready = world.outcome("app", &wish).await;
    let server = i32::try_from(ready["pid"].as_i64().expect("a pid")).expect("a pid");
    assert!(!in_memory(server, value.as_bytes()).is_empty(), "or this looks at nothing");
    let runner = world.runner_pid();
    let mut helpers = children_of(runner);
    helpers.extend(helpers.clone().into_iter().flat_map(children_of).filter(|pid| *pid != server));
    assert!(!helpers.is_empty());
    for secret in [value, file] {
        for &helper in &helpers {
            assert_eq!(in_memory(helper, secret.as_bytes()), [""; 0], "in the helper");
        }
        // A heap that moves while it is read may be missed, or read twice.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut found = in_memory(runner, secret.as_bytes());
        while found.len() != 1 && std::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
            found = in_memory(runner, secret.as_bytes());
        }
        assert_eq!(found.len(), 1, "{found:#?}");
    }
    assert_eq!(world.remove("app").await, StatusCode::NO_CONTENT);
    // Of the boot key its text stays where the HTTP library read it, until that reads the next request there. The tasks
    // that masked the server's last words may end a moment after it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    for secret in [value.as_bytes(), file.as_bytes(), &[0x3c; 32]] {
        let mut found = in_memory(runner, secret);
        while !found.is_empty() && std::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
            found = in_memory(runner, secret);
        }
        assert!(found.is_empty(), "{}: {found:#?}", secret.escape_ascii());
    }
}

#[tokio::test]
async fn a_new_value_takes_its_place_without_a_call_that_fails() {
    let host = Trusted::start().await;
    let mut pin = None;
    let mut wish = async |version: i64| {
        let mut wish = host.world.wish(&[]);
        refer(&mut wish, "TOKEN", Some(&host.owner), "token", None);
        if pin.is_none() {
            pin = Some(host.world.pin().await);
        }
        let consent = host.owner.agree("app", &wish, pin.as_ref().expect("made"));
        wish["vault"] = material(&[host.token(version)], &[consent]);
        wish
    };
    assert_eq!(host.world.outcome("app", &wish(1).await).await["phase"], "ready");
    let is_over = std::cell::Cell::new(false);
    let calls = async {
        let (mut n, mut last) = (0, 0);
        while !is_over.get() {
            let line = host.world.call("app", "env", json!({"name": "TOKEN"})).await;
            let text = line["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{line}"));
            let version: i64 = text.rsplit('-').next().and_then(|n| n.parse().ok()).expect("a version");
            assert!(version >= last, "{version} after {last}");
            (n, last) = (n + 1, version);
        }
        (n, last)
    };
    let slow = host.world.call("app", "sleep", json!({"ms": 1500}));
    let updates = async {
        for version in 2..=4 {
            assert_eq!(host.world.outcome("app", &wish(version).await).await["phase"], "ready");
        }
        // One more call finds the last.
        host.world.text("app", "echo", json!({"text": "x"})).await;
        is_over.set(true);
    };
    let ((n, last), slow, ()) = tokio::join!(calls, slow, updates);
    assert!(n > 3 && last >= 3, "{n} calls, the last by {last}");
    assert_eq!(slow["result"]["content"][0]["text"], "woke", "{slow}");
    assert_eq!(host.world.text("app", "env", json!({"name": "TOKEN"})).await, format!("{CANARY}-4"));
}
