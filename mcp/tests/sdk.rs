//! The front against the official Rust SDK's client, in both eras and all four cells.

use std::sync::Arc;
use std::time::Duration;

use mcp::front::{About, Changes, Eras, Exchange, Offer, serve, unknown_method};
use mcp::raw::{Members, raw, value};
use mcp::stdio::Answer;
use rmcp::model::{
    CallToolRequestParams, CancelledNotificationParam, ClientCapabilities, ElicitRequestParams, ElicitResult,
    ElicitationAction, ProtocolVersion, ServerNotification, SubscriptionFilter,
};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt, NotificationContext, RequestContext, RunningService,
};
use rmcp::{ClientHandler, ErrorData, RoleClient};
use serde_json::json;
use tokio::io::duplex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(20);
const ELICIT: &str = r#"{"method":"elicitation/create","params":{"message":"who?","requestedSchema":{"type":"object","properties":{}}}}"#;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it happens in time")
}

/// One tool, `ask`: it asks the client for something and says what came.
struct Stage {
    is_modern: bool,
    changes: watch::Sender<Changes>,
}

fn text(text: &str) -> Answer {
    Answer::Result(value(&json!({"content":[{"type":"text","text":text}]})))
}

impl Offer for Stage {
    async fn about(&self) -> About {
        About {
            server_info: raw(r#"{"name":"stage","version":"1.0"}"#.to_owned()),
            capabilities: raw(r#"{"tools":{}}"#.to_owned()),
            instructions: None,
            is_modern: self.is_modern,
        }
    }

    async fn handle(&self, exchange: &Exchange) -> Answer {
        match exchange.method.as_str() {
            "tools/list" => {
                let tools = r#"{"tools":[{"name":"ask","inputSchema":{"type":"object"}}]}"#;
                Answer::Result(raw(tools.to_owned()))
            }
            "tools/call" if self.is_modern => {
                let params = exchange.params.as_ref().expect("params");
                let members = Members::read(params.get()).expect("an object");
                match members.get("inputResponses") {
                    None => Answer::Result(raw(format!(
                        r#"{{"resultType":"input_required","inputRequests":{{"k":{ELICIT}}},"requestState":"s"}}"#
                    ))),
                    Some(said) => match text(said.get()) {
                        Answer::Result(result) => {
                            Answer::Result(mcp::raw::with_missing(&result, &[("resultType", "\"complete\"")]))
                        }
                        failed @ Answer::Error(_) => failed,
                    },
                }
            }
            "tools/call" => match exchange.ask(&raw(ELICIT.to_owned())).await {
                Answer::Result(said) => text(said.get()),
                failed @ Answer::Error(_) => failed,
            },
            _ => unknown_method(),
        }
    }

    fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }
}

struct Person {
    tools_changed: Arc<Notify>,
}

impl ClientHandler for Person {
    fn get_info(&self) -> rmcp::model::ClientConfig {
        let mut info = rmcp::model::ClientConfig::default();
        let capabilities: ClientCapabilities =
            serde_json::from_value(json!({"elicitation":{"form":{}}})).expect("capabilities");
        info.capabilities = capabilities;
        info
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({"who":"Ana"})))
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.tools_changed.notify_one();
    }

    async fn on_cancelled(
        &self,
        _params: CancelledNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
    }
}

struct Scene {
    client: RunningService<RoleClient, Person>,
    stage: Arc<Stage>,
    tools_changed: Arc<Notify>,
    work: JoinSet<()>,
}

async fn scene(mode: ClientLifecycleMode, is_modern_offer: bool) -> Scene {
    let (ours, theirs) = (duplex(1 << 16), duplex(1 << 16));
    let stage = Arc::new(Stage { is_modern: is_modern_offer, changes: watch::Sender::default() });
    let mut work = JoinSet::new();
    work.spawn(serve(ours.0, theirs.0, Arc::clone(&stage), Eras::Both));
    let tools_changed = Arc::new(Notify::new());
    let person = Person { tools_changed: Arc::clone(&tools_changed) };
    let client = soon(person.serve_with_lifecycle((theirs.1, ours.1), mode))
        .await
        .expect("they understand each other");
    Scene { client, stage, tools_changed, work }
}

fn modes() -> [(ClientLifecycleMode, ProtocolVersion); 2] {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    [
        (ClientLifecycleMode::Initialize, ProtocolVersion::LATEST_WITH_INITIALIZE),
        (
            ClientLifecycleMode::Auto { preferred_versions, legacy_version: None },
            ProtocolVersion::V_2026_07_28,
        ),
    ]
}

#[tokio::test]
async fn every_cell_lists_and_asks_the_client() {
    for (mode, version) in modes() {
        for is_modern_offer in [false, true] {
            let mut scene = scene(mode.clone(), is_modern_offer).await;
            let peer = scene.client.peer_info().expect("a greeting");
            assert_eq!(peer.protocol_version, version);
            let tools = soon(scene.client.list_all_tools()).await.expect("tools");
            assert_eq!(tools[0].name, "ask");
            let result =
                soon(scene.client.call_tool(CallToolRequestParams::new("ask"))).await.expect("a result");
            let said = serde_json::to_string(&result).expect("JSON");
            assert!(said.contains("Ana"), "{mode:?} {is_modern_offer}: {said}");
            soon(scene.client.cancel()).await.expect("it closes");
            soon(scene.work.join_next()).await.expect("one task").expect("and it ends with its client");
        }
    }
}

#[tokio::test]
async fn a_legacy_client_is_told_of_changed_lists() {
    let [(legacy, _), _] = modes();
    let scene = scene(legacy, false).await;
    soon(scene.client.list_all_tools()).await.expect("tools");
    scene.stage.changes.send_modify(|changes| changes.tools += 1);
    soon(scene.tools_changed.notified()).await;
}

#[tokio::test]
async fn a_modern_client_is_told_by_its_stream() {
    let [_, (modern, _)] = modes();
    let scene = scene(modern, false).await;
    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    let mut stream = soon(scene.client.listen(filter)).await.expect("a stream");
    assert_eq!(stream.acknowledged().tools_list_changed, Some(true));
    scene.stage.changes.send_modify(|changes| changes.tools += 1);
    let told = soon(stream.next()).await.expect("the stream goes on").expect("and says something");
    assert!(matches!(told, ServerNotification::ToolListChangedNotification(_)), "{told:?}");
    soon(stream.cancel()).await.expect("it ends");
    soon(scene.client.list_all_tools()).await.expect("the rest goes on");
}
