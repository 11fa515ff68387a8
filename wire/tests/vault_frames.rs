//! The vault's frames and documents as they stand on the wire: each text is read and written again, byte for byte.
//! A change here is a protocol review.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::ErrorCode;
use wire::peer::hosting::{McpDeploy, McpDeployStatus};
use wire::peer::vault::*;
use wire::peer::{Body, Head, write};
use wire::runner::Apply;
use wire::vault::*;

const KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
const MESH: &str = "M0000000000000000000000000000001";

/// The text with long values in place of their short marks.
fn spelled(text: &str) -> String {
    let text = text.replace("KEY", KEY).replace("MESH", MESH);
    text.replace("KID", &"0a".repeat(8)).replace("RUN", &"0b".repeat(16)).replace("SIG", &"0c".repeat(64))
}

fn frame<B: Body + Serialize + DeserializeOwned>(fields: &str) {
    let text = spelled(&format!("{{\"type\":\"{}\",\"_reqId\":\"r1\"{fields}}}", B::TYPE));
    let head: Head = serde_json::from_str(&text).expect("has a head");
    assert_eq!(&*head.kind, B::TYPE);
    let body: B = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(write(Some("r1"), &body).expect("writes"), text);
}

fn document<T: Serialize + DeserializeOwned>(text: &str) {
    let text = spelled(text);
    let read: T = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(serde_json::to_string(&read).expect("writes"), text);
}

#[test]
fn the_originals_frames_keep_their_fields() {
    frame::<VaultSet>(
        r#","key":"a/b c","ciphertext":"Yw==","nonce":"bg==","sealed_key":"cw==","entry_type":"file","mount_path":"/p","description":"d""#,
    );
    frame::<VaultGet>(r#","keys":["a"]"#);
    frame::<VaultGetResult>(
        r#","entries":[{"key":"a","ciphertext":"Yw==","nonce":"bg==","sealed_key":"cw==","entry_type":"env","mount_path":null}]"#,
    );
    frame::<VaultListResult>(
        r#","entries":[{"key":"a","entry_type":"env","mount_path":null,"description":null,"updated_at":"2026-01-02T03:04:05.678Z"}]"#,
    );
    frame::<VaultDelete>(r#","key":"a""#);
    frame::<VaultAck>(r#","key":"a","action":"not_found""#);
    let list: VaultList = serde_json::from_str("{\"type\":\"vault_list\"}").expect("no fields");
    assert_eq!(write(None, &list).expect("writes"), "{\"type\":\"vault_list\"}");
}

const ENTRY: &str = r#"{"owner":"KEY","key":"github-token","version":2,"kind":"env","created_ms":5,"content":"Yw==","signature":"SIG","wrap":{"kid":"KID","sealed":"cw=="}}"#;
const VAULT_KEY: &str = r#"{"number":1,"kid":"KID","public":"KEY","created_ms":5,"signature":"SIG"}"#;
const GRANT: &str = r#"{"runner":"RUN","kid":"KID","signer":"KEY","sealed":"cw==","signature":"SIG"}"#;
const WRAP: &str = r#"{"owner":"KEY","key":"k","version":2,"kind":"file","created_ms":5,"content_sha256":"KEY","wrap":{"kid":"KID","sealed":"cw=="}}"#;
const OPENING: &str = r#"{"seq":1,"at_ms":5,"runner":"RUN","mesh":"MESH","owner":"KEY","key":"k","version":2,"service":"echo","generation":3,"reason":"start"}"#;
const SPEC: &str = r#"{"source":{"type":"npx","package":"p"},"limits":{"memory_mb":512,"milli_cpus":1000,"pids":128,"disk_mb":1024,"open_files":1024},"vault":{"CREDS":{"owner":"KEY","key":"creds","file":"/secrets/creds.json"},"TOKEN":{"key":"t"}},"run_as":"caller","inject":["api.github.com:443"],"unmasked_results":true}"#;
const PIN: &str = r#"{"kind":"npm","name":"p","version":"1.2.3","integrity":"sha512-x","lock_sha256":"KEY"}"#;

#[test]
fn entries_and_their_frames() {
    frame::<VaultPut>(&format!(r#","entry":{ENTRY}"#));
    document::<VaultEntry>(
        r#"{"owner":"KEY","key":"k","version":3,"kind":"gone","created_ms":5,"signature":"SIG"}"#,
    );
    frame::<VaultPutResult>(r#","key":"k","version":2,"services":["echo"]"#);
    frame::<VaultHistory>(r#","key":"k""#);
    frame::<VaultHistoryResult>(
        r#","key":"k","versions":[{"version":2,"kind":"env","stored_at":"t","kid":"KID","openings":4}]"#,
    );
    frame::<VaultLedger>(r#","key":"k","service":"echo","limit":10"#);
    frame::<VaultLedgerResult>(&format!(
        r#","lines":[{{"at_ms":5,"act":"opened","who":"Ana","key":"k","version":2,"opening":{OPENING},"runner":"RUN"}}]"#
    ));
}

#[test]
fn keys_runners_and_their_frames() {
    frame::<VaultKeys>("");
    frame::<VaultKeysResult>(&format!(
        r#","owner":"KEY","keys":[{{"key":{VAULT_KEY},"entries":7,"owner_copy":"cw=="}}]"#
    ));
    frame::<VaultKeyPut>(&format!(r#","key":{VAULT_KEY},"owner_copy":"cw==","grants":[{GRANT}]"#));
    frame::<VaultWraps>(r#","kid":"KID""#);
    frame::<VaultWraps>(r#","kid":"KID","after":{"owner":"KEY","key":"k"}"#);
    frame::<VaultWrapsResult>(&format!(r#","wraps":[{WRAP}]"#));
    frame::<VaultRewrap>(&format!(r#","from":"KID","wraps":[{WRAP}]"#));
    frame::<VaultRewrapped>(r#","left":0"#);
    frame::<VaultKeyDrop>(r#","kid":"KID""#);
    frame::<AtRestRotate>("");
    frame::<AtRestRotated>(r#","key":"0a0a0a0a","records":3"#);
    frame::<RunnerList>("");
    frame::<RunnerListResult>(
        r#","runners":[{"id":"RUN","public":"KEY","custody":"split","state":{"state":"open"},"connected":true,"granted":["KID"]}]"#,
    );
    frame::<RunnerTrust>(&format!(r#","grants":[{GRANT}]"#));
    frame::<RunnerRevoke>(r#","runner":"RUN""#);
    document::<VaultState>(r#"{"state":"locked","boot_id":"b"}"#);
    document::<Grants>(&format!(r#"{{"grants":[{GRANT}]}}"#));
    document::<BootKey>(r#"{"boot_id":"b","key":"KEY"}"#);
    document::<RunnerVault>(
        r#"{"custody":"memory","state":{"state":"new"},"held":{"MESH":["KID"]},"last_opening":0,"ledger":"l"}"#,
    );
}

#[test]
fn consent_and_what_it_covers() {
    let doc = format!(
        r#"{{"v":1,"mesh":"MESH","service":"echo","spec":{SPEC},"pin":{PIN},"serial":5,"floor":0,"min_versions":{{"creds":2}}}}"#
    );
    document::<ConsentDoc>(&doc);
    let consent = format!(
        r#"{{"signer":"KEY","doc":{},"signature":"SIG"}}"#,
        serde_json::to_string(&spelled(&doc)).expect("json")
    );
    let ask = format!(
        r#"{{"service":"echo","generation":3,"spec":{SPEC},"pin":{PIN},"versions":{{"creds":2}},"previous":{consent}}}"#
    );
    frame::<McpConsentAsk>(r#","server_name":"echo""#);
    frame::<McpConsentAsked>(&format!(r#","ask":{ask}"#));
    frame::<McpConsent>(&format!(r#","server_name":"echo","consent":{consent}"#));
    frame::<McpDeployStatus>(&format!(
        r#","server_name":"echo","status":"awaiting_consent","generation":3,"consent":{ask}"#
    ));
    document::<Apply>(&format!(
        r#"{{"generation":3,"spec":{SPEC},"secrets":{{"env":{{}}}},"proven":false,"policy":{{"min_isolation":"strict","min_release_age_s":0}},"vault":{{"entries":[{ENTRY}],"consents":[{consent}],"caller":"KEY"}}}}"#
    ));
}

#[test]
fn a_deploy_may_name_whose_entries_and_where_they_are_put_in() {
    frame::<McpDeploy>(
        r#","server_name":"echo","source":{"type":"npx"},"config":{"env":{"T":"$vault:t"},"run_as":"caller","inject":["api.github.com"],"unmasked_results":true},"scope":null"#,
    );
}

#[test]
fn a_signed_document_with_a_word_that_is_not_known_is_not_read() {
    let doc = format!(
        r#"{{"v":1,"mesh":"MESH","service":"echo","spec":{SPEC},"pin":{PIN},"serial":5,"floor":0,"also":1}}"#
    );
    assert!(serde_json::from_str::<ConsentDoc>(&spelled(&doc)).is_err());
}

#[test]
fn what_waits_for_the_vault_is_no_fault_of_the_service() {
    assert_eq!(ErrorCode::ALL.iter().filter(|code| code.is_vault_wait()).count(), 7);
    assert!(!ErrorCode::StartExited.is_vault_wait() && !ErrorCode::VaultError.is_vault_wait());
}

#[test]
fn a_boot_key_is_not_printed() {
    let key: BootKey = serde_json::from_str(r#"{"boot_id":"b","key":"hunter2"}"#).expect("reads");
    assert!(!format!("{key:?}").contains("hunter2"));
}
