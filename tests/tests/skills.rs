//! Skills from the command line: shared from a folder, a zip and git, shown, written out again, and taken back.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tests::git::GitHost;
use tests::{World, fixture};

const MAIN: &str = "---\nname: review\ndescription: Use when: a merge is near\ntags: [code, care]\n\
    allowed-tools: Read, Grep\nwhen_to_use: before a merge\n---\n\n# Look twice\n";

#[tokio::test]
async fn a_skill_goes_from_folder_to_folder_through_the_mesh() {
    World::scene(async |world| {
        let bo = world.join("Bo", &[]).await;
        let folder = world.folder("review");
        fixture::write_tree(&folder, &[("SKILL.md", MAIN), ("scripts/run.sh", "echo hi\n")]);
        let run = folder.join("scripts/run.sh");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        bo.ok(["skill", "share", folder.to_str().unwrap()]).await;

        let list = world.owner.json(["skill", "ls", "MERGE"]).await;
        let skill = &list["skills"][0];
        assert_eq!(
            (&skill["name"], &skill["author"], &skill["tags"]),
            (&json!("review"), &json!("Bo"), &json!(["code", "care"]))
        );
        assert_eq!(
            skill["manifest"],
            json!({"allowed_tools": ["Read", "Grep"], "when_to_use": "before a merge"})
        );
        let shown = world.owner.ok(["skill", "show", "review"]).await;
        assert!(shown.contains("# Look twice") && shown.contains("scripts/run.sh"), "{shown}");

        let copy = world.path().join("copy");
        world.owner.ok(["skill", "show", "review", "--to", copy.to_str().unwrap()]).await;
        assert_eq!(std::fs::read_to_string(copy.join("scripts/run.sh")).unwrap(), "echo hi\n");
        assert!(std::fs::metadata(copy.join("scripts/run.sh")).unwrap().permissions().mode() & 0o111 != 0);
        // What was written out is the same skill.
        world.owner.ok(["skill", "share", copy.to_str().unwrap(), "--name", "again"]).await;
        let of = async |name: &str| world.owner.json(["skill", "show", name]).await;
        let (first, again) = (of("review").await, of("again").await);
        for field in ["description", "instructions", "tags", "manifest", "files"] {
            assert_eq!(first[field], again[field], "{field}");
        }

        let refused = bo.refused(["skill", "rm", "again"]).await;
        assert_eq!(refused.code, "forbidden");
        world.owner.ok(["skill", "rm", "review"]).await;
        assert_eq!(bo.refused(["skill", "show", "review"]).await.code, "not_found");
    })
    .await;
}

#[tokio::test]
async fn a_skill_comes_from_a_repository() {
    World::scene(async |world| {
        let host = GitHost::start(world.folder("git")).await;
        host.commit(
            "tools",
            &[("README.md", "x"), ("skills/review/SKILL.md", MAIN), ("skills/review/a.md", "a")],
        )
        .await;
        let url = host.url("tools");
        world.owner.ok(["skill", "share", "skills/review", "--git", &url]).await;
        let skill = world.owner.json(["skill", "show", "review"]).await;
        assert_eq!(skill["files"][0]["path"], "a.md");
        assert_eq!(world.owner.refused(["skill", "share", "--git", &url]).await.exit, 2);
        assert_eq!(
            world
                .owner
                .refused(["skill", "share", "skills/review", "--git", &url, "--ref", "none"])
                .await
                .code,
            "ref_not_found"
        );
        let outside = world.owner.refused(["skill", "share", "--git", "file:///etc"]).await;
        assert_eq!(outside.code, "source_refused");
    })
    .await;
}
