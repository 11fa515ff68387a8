//! `allow`, `deny`, `learn`: where a service may connect to. Each change is a new generation with the same pin.

use wire::EgressRule;
use wire::peer::hosting::{McpStatus, McpStatusResult, ServiceStatus};
use wire::peer::trust::McpNetwork;
use wire::report::Verdict;

use super::ask;
use super::consent::Asked;
use super::deploy::{change, count};
use crate::args::{LearnArgs, RulesArgs};
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::plain::brief;
use crate::units;

pub async fn allow(here: &Here, args: &RulesArgs) -> Result<(), Failure> {
    let frame =
        McpNetwork { server_name: args.name.clone(), allow: texts(&args.rules), ..McpNetwork::default() };
    let asked = Asked::Network { allow: args.rules.clone(), deny: Vec::new(), learn_minutes: None };
    let word = format!("may now connect to {}", texts(&args.rules).join(", "));
    change(here, &args.name, &frame, (asked, &word)).await
}

pub async fn deny(here: &Here, args: &RulesArgs) -> Result<(), Failure> {
    let frame =
        McpNetwork { server_name: args.name.clone(), deny: texts(&args.rules), ..McpNetwork::default() };
    let asked = Asked::Network { allow: Vec::new(), deny: args.rules.clone(), learn_minutes: None };
    change(here, &args.name, &frame, (asked, &format!("has lost {}", texts(&args.rules).join(", ")))).await
}

fn texts(rules: &[EgressRule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

pub async fn learn(here: &Here, args: &LearnArgs) -> Result<(), Failure> {
    let name = &args.name;
    if args.accept {
        return accept(here, name, args.yes).await;
    }
    let minutes = if args.stop { 0 } else { args.minutes };
    let frame =
        McpNetwork { server_name: name.clone(), learn_minutes: Some(minutes), ..McpNetwork::default() };
    let asked = Asked::Network { allow: Vec::new(), deny: Vec::new(), learn_minutes: Some(minutes) };
    if args.stop {
        return change(here, name, &frame, (asked, "is no longer being learned, and keeps its list")).await;
    }
    here.out.remark(format!(
        "warning: for {} {name} may send what it knows to any public host (ports 80 and 443)",
        count(minutes as usize, "minute")
    ));
    let word = format!("is being learned for {}", count(minutes as usize, "minute"));
    change(here, name, &frame, (asked, &word)).await?;
    here.out.remark(format!("use it now, then: claudemesh learn {name} --accept (or --stop)"));
    Ok(())
}

/// Shows what was learned, asks, and then allows it and ends the learning in one frame: what is shown is what is allowed.
async fn accept(here: &Here, name: &str, yes: bool) -> Result<(), Failure> {
    let found: McpStatusResult = ask(here, &McpStatus { server_name: name.to_owned() }).await?;
    if !found.service.manageable {
        let message = format!("only those who may manage {name} see where it connects to");
        return Err(Failure::of_code(wire::ErrorCode::Forbidden, message));
    }
    let proposal = Proposal::of(&found.service);
    for (host, why) in &proposal.left_out {
        here.out.remark(format!("left out: {}: {why}", brief(host, 80)));
    }
    if proposal.rules.is_empty() {
        if found.service.learning_until.is_none() {
            return Err(Failure::user(format!("nothing new was learned about {name}"))
                .with_cure(format!("`claudemesh learn {name}` starts it; then use the service.")));
        }
        here.out.remark(format!("{name} connected nowhere that is not on its list"));
    } else {
        let table = proposal.table(units::now_ms());
        if yes {
            here.out.remark(table);
        } else {
            let question = format!("Allow {} to {name}?", count(proposal.rules.len(), "host"));
            here.out.confirm(&table, &question)?;
        }
    }
    let allow: Vec<String> = proposal.rules.iter().map(|learned| learned.rule.to_string()).collect();
    let word = match allow.as_slice() {
        [] => "is no longer being learned, and keeps its list".to_owned(),
        rules => format!("may now connect to {}", rules.join(", ")),
    };
    let frame = McpNetwork {
        server_name: name.to_owned(),
        allow,
        deny: Vec::new(),
        // An end that has passed is no learning that could be ended.
        learn_minutes: found.service.learning_until.is_some().then_some(0),
    };
    let allow = proposal.rules.into_iter().map(|learned| learned.rule).collect();
    let asked = Asked::Network { allow, deny: Vec::new(), learn_minutes: frame.learn_minutes };
    change(here, name, &frame, (asked, &word)).await
}

/// What the learning proposes for the list.
#[derive(Debug, PartialEq, Eq)]
struct Proposal {
    rules: Vec<Learned>,
    /// What can be no rule, and why.
    left_out: Vec<(String, String)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Learned {
    rule: EgressRule,
    count: u64,
    last_ms: i64,
    sent_bytes: u64,
}

impl Proposal {
    fn of(service: &ServiceStatus) -> Self {
        let mut proposal = Self { rules: Vec::new(), left_out: Vec::new() };
        for decision in service.egress.iter().filter(|decision| decision.verdict == Verdict::Learned) {
            let host = format!("{}:{}", decision.host, decision.port);
            match EgressRule::parse(&host) {
                // A wildcard is for a person to write.
                Ok(rule) if matches!(rule.host, wire::egress::Host::Below(_)) => {}
                Ok(rule) if service.network.iter().any(|old| old.covers(&decision.host, rule.port)) => {}
                Ok(rule) if proposal.rules.iter().any(|known| known.rule == rule) => {}
                Ok(rule) => proposal.rules.push(Learned {
                    rule,
                    count: decision.count,
                    last_ms: decision.last_ms,
                    sent_bytes: decision.sent_bytes,
                }),
                Err(why) => proposal.left_out.push((host, crate::plain::plain_line(&why.to_string()))),
            }
        }
        proposal.rules.sort_by(|a, b| a.rule.cmp(&b.rule));
        proposal
    }

    fn table(&self, now_ms: i64) -> String {
        let rows = self.rules.iter().map(|learned| {
            vec![
                learned.rule.to_string(),
                learned.count.to_string(),
                units::size(learned.sent_bytes),
                units::moment(learned.last_ms, now_ms),
            ]
        });
        table(&["HOST", "CONNECTIONS", "SENT", "LAST"], rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::card::tests::service;

    #[test]
    fn the_proposal_is_what_was_learned_and_is_not_on_the_list_yet() {
        let mut service = service();
        let learned = r#"[
            {"host":"new.example.com","port":443,"verdict":"learned","count":2,"last_ms":5,"sent_bytes":2048},
            {"host":"api.github.com","port":443,"verdict":"learned","count":1,"last_ms":5},
            {"host":"203.0.113.9","port":443,"verdict":"learned","count":1,"last_ms":5},
            {"host":"evil.com","port":443,"verdict":"not_listed","count":1,"last_ms":5},
            {"host":"old.example.com","port":80,"verdict":"learned","count":1,"last_ms":5}]"#;
        service.egress = serde_json::from_str(learned).unwrap();
        let proposal = Proposal::of(&service);
        let rules: Vec<String> = proposal.rules.iter().map(|learned| learned.rule.to_string()).collect();
        assert_eq!(rules, ["new.example.com:443", "old.example.com:80"]);
        assert_eq!(proposal.left_out.len(), 1);
        assert!(proposal.left_out[0].1.contains("address"));
        let table = proposal.table(5);
        assert!(table.contains("new.example.com:443") && table.contains("2.0 kB"), "{table}");
    }
}
