//! Claims about names at clients.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).expect("a service name")
}

/// Both whole names of a tool.
fn whole(service: &ServiceName, tool: &str) -> [String; 2] {
    [
        format!("mcp__claudemesh__{}", svc_name(service, tool)),
        format!("mcp__{}__{}", native_server(service), native_tool(service, tool)),
    ]
}

fn is_fit(name: &str) -> bool {
    name.len() <= MAX && name.bytes().all(is_allowed)
}

#[test]
fn a_name_that_fits_is_used_as_it_is() {
    let time = service("time");
    assert_eq!(svc_name(&time, "get_current_time"), "svc__time__get_current_time");
    assert_eq!(native_server(&time), "mesh-time");
    assert_eq!(native_tool(&time, "get_current_time"), "get_current_time");
}

#[test]
fn a_name_of_exactly_64_characters_is_not_cut_and_one_more_is() {
    let files = service("files");
    let fits = "t".repeat(35);
    assert_eq!(whole(&files, &fits)[0], format!("mcp__claudemesh__svc__files__{fits}"));
    assert_eq!(whole(&files, &fits)[0].len(), 64);
    let cut = svc_name(&files, &"t".repeat(36));
    assert_eq!(cut.len(), MAX - MESH_PREFIX);
    assert!(cut.rsplit_once('_').is_some_and(|(_, end)| is_hash(end)), "{cut}");
}

#[test]
fn names_of_the_first_release_stay_what_they_were() {
    let long = service("a-service-with-a-really-long-name-that-nobody-should-type");
    let names = [
        svc_name(&service("time"), "convert time"),
        svc_name(&service("time"), "zeit_ändern"),
        svc_name(&long, "search"),
        native_server(&long),
        native_tool(&long, "search"),
        native_tool(&service("time"), &"x".repeat(60)),
    ];
    assert_eq!(
        names,
        [
            "svc__time__convert_time_8455976a",
            "svc__time__zeit__ndern_5d7c9d7b",
            "svc__a-service-with--25a4e41c__search_21aa76bd",
            "mesh-a-service-with--25a4e41c",
            "search",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx_14e0bf6b",
        ]
    );
}

#[test]
fn a_tool_or_service_that_imitates_a_changed_name_is_changed_itself() {
    let time = service("time");
    let imitation = svc_name(&time, "convert time").replace("svc__time__", "");
    assert_ne!(svc_name(&time, &imitation), svc_name(&time, "convert time"));
    let long = service("a-service-with-a-really-long-name");
    let imitation = service(native_server(&long).trim_start_matches("mesh-"));
    assert_ne!(native_server(&imitation), native_server(&long));
    assert_ne!(svc_name(&imitation, "t"), svc_name(&long, "t"));
}

#[test]
fn a_tool_that_is_listed_twice_collides_and_different_ones_do_not() {
    let time = service("time");
    let twice = collision(&time, ["a", "b", "a"]).expect("collides");
    assert_eq!(
        (twice.first.as_str(), twice.second.as_str(), twice.name.as_str()),
        ("a", "a", "svc__time__a")
    );
    assert_eq!(collision(&time, ["a b", "a_b", "a-b", "a.b", "A_b"]), None);
}

#[test]
fn each_of_its_names_leads_back_to_the_tool() {
    let time = service("time");
    let tools = ["now", "convert time", "svc__time__now"];
    for tool in tools {
        assert_eq!(resolve(&time, tools, tool), Some(tool));
        assert_eq!(resolve(&time, tools, &native_tool(&time, tool)), Some(tool));
    }
    assert_eq!(resolve(&time, tools, &svc_name(&time, "convert time")), Some("convert time"));
    assert_eq!(resolve(&time, tools, "then"), None);
    assert_eq!(resolve(&time, tools, ""), None);
}

fn services() -> impl Strategy<Value = ServiceName> {
    let text = prop_oneof!["[a-c][a-c_-]{0,63}", "[a-c-]{15}-[0-9a-f]{8}", "[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}"];
    text.prop_filter_map("the name rule", |text| ServiceName::parse(&text).ok())
}

fn tools() -> impl Strategy<Value = String> {
    prop_oneof!["[ab_.]{0,8}", "[a-z_]{1,80}", "\\PC{0,40}", "[ab]{1,8}_[0-9a-f]{8}", "[a-z/. ]{30,200}"]
}

proptest! {
    #[test]
    fn every_name_fits_every_client(service in services(), tool in tools()) {
        for name in whole(&service, &tool) {
            prop_assert!(is_fit(&name), "{}", name);
        }
        prop_assert_eq!(whole(&service, &tool), whole(&service, &tool));
    }

    #[test]
    fn different_tools_and_services_get_different_names(
        pairs in proptest::collection::hash_set((services(), tools()), 2..40),
    ) {
        let mut seen = HashSet::new();
        for (service, tool) in &pairs {
            for name in whole(service, tool) {
                prop_assert!(seen.insert(name.clone()), "{} twice", name);
            }
        }
    }

    #[test]
    fn a_name_splits_into_service_and_tool_in_one_way(service in services(), tool in tools()) {
        let name = svc_name(&service, &tool);
        let (found, rest) = name.strip_prefix("svc__").and_then(|n| n.split_once("__")).expect("two parts");
        // A service that was not cut reads as itself, whatever the tool begins with.
        if !is_cut_service(service.as_str()) {
            prop_assert_eq!(found, service.as_str());
            if is_plain(&tool) && name.len() < MAX - MESH_PREFIX {
                prop_assert_eq!(rest, tool.as_str());
            }
        }
    }

    #[test]
    fn a_name_leads_back_to_its_tool(service in services(), tools in proptest::collection::btree_set(tools(), 1..20)) {
        let listed: Vec<&str> = tools.iter().map(String::as_str).collect();
        if collision(&service, listed.iter().copied()).is_none() {
            for tool in &listed {
                prop_assert_eq!(resolve(&service, listed.iter().copied(), tool), Some(*tool));
            }
        }
    }
}
