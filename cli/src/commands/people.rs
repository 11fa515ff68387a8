//! `peers`, `members`, `member`.

use wire::peer::hello::Group;
use wire::peer::mesh::{
    ListPeers, MemberEntry, MemberList, MemberListResult, MemberUpdate, MemberUpdated, PeersList,
};

use super::ask;
use crate::args::MemberArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::plain::{brief, plain_line};
use crate::units;

pub async fn peers(here: &Here) -> Result<(), Failure> {
    let found: PeersList = ask(here, &ListPeers {}).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    let now = units::now_ms();
    let rows = found.peers.iter().map(|peer| {
        vec![
            brief(&peer.display_name, 40),
            plain_line(&peer.status),
            brief(peer.peer_type.as_deref().unwrap_or("-"), 20),
            brief(peer.channel.as_deref().unwrap_or("-"), 24),
            brief(peer.role.as_deref().unwrap_or("-"), 24),
            groups_words(&peer.groups),
            brief(peer.hostname.as_deref().unwrap_or("-"), 24),
            units::since(&peer.connected_at, now).map_or_else(|| "-".to_owned(), units::span),
            brief(&peer.cwd, 60),
        ]
    });
    let header = ["NAME", "STATUS", "TYPE", "CHANNEL", "ROLE", "GROUPS", "HOST", "SINCE", "FOLDER"];
    here.out.line(table(&header, rows.collect()));
    Ok(())
}

pub async fn members(here: &Here) -> Result<(), Failure> {
    let found: MemberListResult = ask(here, &MemberList {}).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    here.out.line(member_table(&found.members));
    Ok(())
}

fn member_table(members: &[MemberEntry]) -> String {
    let rows = members.iter().map(|member| {
        vec![
            brief(&member.display_name, 40),
            if member.revoked { "removed".to_owned() } else { plain_line(&member.role) },
            groups_words(&member.groups),
            brief(member.role_tag.as_deref().unwrap_or("-"), 24),
            plain_line(&member.joined_at).chars().take(10).collect(),
            plain_line(&member.member_id),
        ]
    });
    table(&["NAME", "ROLE", "GROUPS", "TAG", "JOINED", "ID"], rows.collect())
}

pub async fn member(here: &Here, args: &MemberArgs) -> Result<(), Failure> {
    let MemberArgs { name, role, role_tag, groups, revoke, place: _ } = args;
    if role.is_none() && role_tag.is_none() && groups.is_none() && !revoke {
        return Err(Failure::user("nothing to change: use --role, --role-tag, --groups or --revoke"));
    }
    let frame = MemberUpdate {
        member: name.clone(),
        role: role.clone(),
        role_tag: role_tag.clone(),
        groups: groups.as_deref().map(parse_groups).transpose()?,
        revoke: *revoke,
    };
    let found: MemberUpdated = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&found.member);
    }
    here.out.line(member_table(&[found.member]));
    Ok(())
}

/// `eng:lead,ops`; empty for none.
pub fn parse_groups(text: &str) -> Result<Vec<Group>, Failure> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, role) = part.split_once(':').map_or((part, None), |(name, role)| (name, Some(role)));
            let name = name.trim().trim_start_matches('@');
            if name.is_empty() || role.is_some_and(|role| role.trim().is_empty()) {
                return Err(Failure::user(format!("`{part}` is not GROUP or GROUP:ROLE")));
            }
            Ok(Group { name: name.to_owned(), role: role.map(|role| role.trim().to_owned()) })
        })
        .collect()
}

fn groups_words(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "-".to_owned();
    }
    let words = groups.iter().map(|group| match &group.role {
        Some(role) => format!("{}:{role}", group.name),
        None => group.name.clone(),
    });
    brief(&words.collect::<Vec<_>>().join(", "), 48)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_and_shown_in_one_spelling() {
        let groups = parse_groups("eng:lead, @ops,").unwrap();
        assert_eq!(groups_words(&groups), "eng:lead, ops");
        assert!(parse_groups("").unwrap().is_empty());
        for bad in ["eng:", ":lead", "@"] {
            assert!(parse_groups(bad).is_err(), "{bad}");
        }
    }
}
