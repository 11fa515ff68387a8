//! `invite` and `join`.

use client::config::{ConfigError, VaultTrust};
use client::invite::{InviteDraft, link, new_root_key, read_link, token};
use client::{BrokerAddress, Config, Identity, MeshEntry};
use serde::Serialize;
use wire::peer::mesh::{InviteCreate, InviteCreated, InvitePreset};
use wire::{ErrorCode, MemberId, MeshId, PublicKey};

use super::ask;
use super::people::parse_groups;
use crate::args::{InviteArgs, JoinArgs};
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::plain_line;
use crate::units;

/// How many invites may be made within one second.
const SAME_SECOND: i64 = 20;

#[derive(Serialize)]
struct Invited<'a> {
    link: String,
    token: &'a str,
    role: &'a str,
    uses: u32,
    expires_at: i64,
}

pub async fn invite(here: &Here, args: &InviteArgs) -> Result<(), Failure> {
    let entry = here.entry()?;
    let expires_at = units::now_ms() / 1000 + i64::try_from(args.expires.as_secs()).unwrap_or(i64::MAX / 2);
    let broker = BrokerAddress::parse(&entry.broker_url)?;
    // The owner talks to the broker on localhost; a teammate can't.
    let health = client::http::health(&broker).await?;
    let broker_url =
        health.public_url.filter(|url| !url.is_empty()).unwrap_or_else(|| entry.broker_url.clone());
    let owner = entry.identity().map_err(|e| Failure::user(e.to_string()))?;
    let root_key = root_key(here, &entry)?;
    let preset = InvitePreset {
        display_name: args.name.clone(),
        role_tag: None,
        groups: args.groups.as_deref().map(parse_groups).transpose()?.unwrap_or_default(),
    };
    let register = async |expires_at: i64| {
        let payload = InviteDraft {
            mesh_id: &entry.mesh_id,
            mesh_slug: &entry.slug,
            broker_url: &broker_url,
            expires_at,
            root_key: &root_key,
            role: &args.role,
        }
        .sign(&owner);
        let wanted =
            token(&payload).map_err(|e| Failure::platform(format!("cannot write the invite: {e}")))?;
        let frame = InviteCreate { payload, max_uses: args.uses, preset: preset.clone() };
        let created: InviteCreated = ask(here, &frame).await?;
        if created.token == wanted {
            return Ok(created);
        }
        Err(Failure::platform("the broker registered another invite than the one that was signed"))
    };
    // Two invites of one second and role are the same signed bytes, so the second one lasts a second longer.
    let mut created = register(expires_at).await;
    for later in 1..=SAME_SECOND {
        match &created {
            Err(failure) if failure.code == Some(ErrorCode::Conflict) => {
                created = register(expires_at + later).await;
            }
            _ => break,
        }
    }
    let created = created?;
    show(here, args, (&created.token, expires_at, &broker_url))
}

fn show(
    here: &Here,
    args: &InviteArgs,
    (token, expires_at, broker_url): (&str, i64, &str),
) -> Result<(), Failure> {
    let link = link(token);
    if here.out.json {
        let (role, uses) = (args.role.as_str(), args.uses);
        return here.out.document(&Invited { link, token, role, uses, expires_at });
    }
    here.out.line(&link);
    let uses = if args.uses == 1 { "once".to_owned() } else { format!("{} times", args.uses) };
    here.out.remark(format!(
        "It can be used {uses} within {}, for {}. Whoever has the link can join: claudemesh join LINK",
        units::span(args.expires),
        plain_line(broker_url)
    ));
    if is_local(broker_url) {
        here.out.remark(
            "That address works on this machine only: start `up` with --listen and --public-url for others.",
        );
    }
    Ok(())
}

fn is_local(url: &str) -> bool {
    ["://127.", "://localhost", "://[::1]"].iter().any(|local| url.contains(local))
}

/// Made once per mesh and kept: every invite of a mesh carries the same one.
fn root_key(here: &Here, entry: &MeshEntry) -> Result<String, Failure> {
    if let Some(key) = &entry.root_key {
        return Ok(key.clone());
    }
    let key = new_root_key().map_err(|e| Failure::platform(e.to_string()))?;
    // Another command may have made one meanwhile.
    let kept = Config::change(&here.config_folder, |config| {
        let known = config.meshes.iter_mut().find(|known| known.mesh_id == entry.mesh_id)?;
        Some(known.root_key.get_or_insert(key).clone())
    })?;
    kept.ok_or_else(|| ConfigError::NoMesh.into())
}

#[derive(Serialize)]
struct JoinedMesh<'a> {
    mesh: &'a str,
    mesh_id: &'a MeshId,
    member_id: &'a MemberId,
    already_member: bool,
}

pub async fn join(here: &Here, args: &JoinArgs) -> Result<(), Failure> {
    let (token, payload) = read_link(&args.link).map_err(|e| Failure::user(e.to_string()))?;
    let mesh_id =
        MeshId::parse(&payload.mesh_id).map_err(|e| Failure::user(format!("the invite is damaged: {e}")))?;
    let owner = PublicKey::parse(&payload.owner_pubkey)
        .map_err(|e| Failure::user(format!("the invite is damaged: {e}")))?;
    let broker = BrokerAddress::parse(&payload.broker_url)?;
    let config = here.config()?;
    let known = config.meshes.iter().find(|mesh| mesh.mesh_id == mesh_id).cloned();
    trust(known.as_ref(), owner.clone())?;
    // The same key again: the broker then says `already a member` and keeps the invite's uses.
    let identity = match &known {
        Some(entry) => entry.identity().map_err(|e| Failure::user(e.to_string()))?,
        None => Identity::generate().map_err(|e| Failure::platform(e.to_string()))?,
    };
    let name = display_name(args.name.as_deref(), &config);
    let joined = client::http::join(&broker, &token, &payload, &identity, &name).await?;
    let member_id = MemberId::parse(&joined.member_id)
        .map_err(|e| Failure::platform(format!("the broker answered with an odd member id: {e}")))?;
    let slug = known.as_ref().map_or(payload.mesh_slug.clone(), |entry| entry.slug.clone());
    let joined_entry = MeshEntry {
        mesh_id,
        member_id,
        name: payload.mesh_slug.clone(),
        slug,
        pubkey: identity.public().clone(),
        secret_key: identity.secret(),
        broker_url: broker.socket().to_owned(),
        joined_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        root_key: Some(payload.mesh_root_key.clone()),
        vault: VaultTrust::default(),
        other: known.map(|entry| entry.other).unwrap_or_default(),
    };
    let entry = Config::change(&here.config_folder, |config| {
        // What is known by now: another command may have learned of the vault meanwhile.
        let known = config.meshes.iter().find(|mesh| mesh.mesh_id == joined_entry.mesh_id);
        let vault = trust(known, owner)?;
        config.display_name.get_or_insert(name);
        Ok::<_, Failure>(config.put(MeshEntry { vault, ..joined_entry }).clone())
    })??;
    let already_member = joined.already_member;
    if here.out.json {
        let MeshEntry { slug, mesh_id, member_id, .. } = &entry;
        return here.out.document(&JoinedMesh { mesh: slug, mesh_id, member_id, already_member });
    }
    let word = if already_member { "you were a member already of" } else { "you are a member of" };
    here.out.line(format!("{word} {}", plain_line(&entry.slug)));
    here.out.remark(format!("see what it offers: claudemesh ls --mesh {}", plain_line(&entry.slug)));
    Ok(())
}

/// A later invite does not talk us out of whom we know, nor of the keys that we have seen.
fn trust(known: Option<&MeshEntry>, owner: PublicKey) -> Result<VaultTrust, Failure> {
    match known.map(|entry| &entry.vault) {
        Some(trust) if trust.owner.as_ref().is_some_and(|known| *known != owner) => {
            let message = "the invite names another owner of this mesh than you know";
            Err(Failure::of_code(ErrorCode::VaultKeyUnproven, message).with_cure(
                "One of the two is forged: ask the owner. To start anew, take the mesh out of config.json.",
            ))
        }
        Some(trust) if trust.owner.is_some() => Ok(trust.clone()),
        _ => Ok(VaultTrust::of_owner(owner)),
    }
}

pub fn display_name(given: Option<&str>, config: &Config) -> String {
    given
        .map(str::to_owned)
        .or_else(|| config.display_name.clone())
        .or_else(env::login_name)
        .unwrap_or_else(|| "me".to_owned())
}
