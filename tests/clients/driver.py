"""Drives one MCP server over stdio with the official Python client and writes down all that the client saw.

    python driver.py MODE SCENARIO COMMAND...

MODE: legacy or auto (2.x only). SCENARIO: a key of steps.json. The same steps as driver.mjs.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import sys

import anyio
import mcp
from mcp import types

IS_V2 = hasattr(mcp, "Client")
PATIENCE = 60
MODE, SCENARIO, COMMAND, *ARGS = sys.argv[1:]
STEPS = json.loads(pathlib.Path(__file__).with_name("steps.json").read_text("utf-8"))[SCENARIO]


def plain(model):
    """A typed result as the JSON that it came from, as far as the types know it."""
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


def said(error):
    if isinstance(error, BaseExceptionGroup):
        return said(error.exceptions[0])
    data = getattr(error, "error", None)
    if data is None:
        return {"kind": type(error).__name__, "message": str(error)}
    return {"code": data.code, "message": data.message, "data": data.data}


class Driver:
    def __init__(self):
        self.answer = "accept"
        self.asked = []
        self.notices = []
        self.came = asyncio.Event()
        self.is_modern = False

    # What the server asks is written down, and answered as the step says.

    def say(self, method, params):
        self.asked.append({"method": method, "params": params and plain(params)})
        return types.ErrorData(code=-1, message="the user refused") if self.answer == "refuse" else None

    async def elicit(self, _context, params):
        if refused := self.say("elicitation/create", params):
            return refused
        has_form = getattr(params, "mode", "form") == "form"
        content = {"name": "Ana"} if self.answer == "accept" and has_form else None
        return types.ElicitResult(action=self.answer, content=content)

    async def sample(self, _context, params):
        if refused := self.say("sampling/createMessage", params):
            return refused
        content = types.TextContent(type="text", text="hi")
        return types.CreateMessageResult.model_validate(
            {"model": "stand-in", "role": "assistant", "stopReason": "endTurn", "content": content}
        )

    async def roots(self, _context):
        if refused := self.say("roots/list", None):
            return refused
        roots = [{"uri": "file:///work", "name": "work"}, {"uri": "file:///other"}]
        return types.ListRootsResult.model_validate({"roots": roots})

    # Notices are kept until a step waits for them.

    async def heard(self, message):
        message = getattr(message, "root", message)
        if isinstance(message, Exception) or not hasattr(message, "method"):
            return
        params = getattr(message, "params", None)
        self.notices.append({"method": message.method, "params": params and plain(params)})
        self.came.set()

    async def noticed(self, wanted):
        async with asyncio.timeout(PATIENCE):
            while True:
                for at, notice in enumerate(self.notices):
                    if wanted(notice):
                        return self.notices.pop(at)
                self.came.clear()
                await self.came.wait()

    # Steps.

    async def lists(self, which):
        client = self.client
        if which == "tools":
            return [plain(it) for it in (await client.list_tools()).tools]
        if which == "resources":
            return [plain(it) for it in (await client.list_resources()).resources]
        if which == "templates":
            found = plain(await client.list_resource_templates())
            return found["resourceTemplates"]
        return [plain(it) for it in (await client.list_prompts()).prompts]

    async def call(self, name, args, **options):
        return plain(await self.client.call_tool(name, args, **options))

    async def read(self, uri):
        return plain(await self.client.read_resource(uri))

    async def prompt(self, name, args):
        return plain(await self.client.get_prompt(name, args))

    async def complete(self, ref, argument, context=None):
        is_prompt = ref["type"] == "ref/prompt"
        kind = types.PromptReference if is_prompt else types.ResourceTemplateReference
        return plain(await self.client.complete(kind.model_validate(ref), argument, context))

    async def meta(self, name, args):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        return await self.call(name, args, meta={"org.example/trace": {"id": 7}, "traceparent": trace})

    async def progress(self, name, args):
        seen = []

        async def progressed(progress, total, message):
            seen.append({"progress": progress, "total": total, "message": message})

        result = await self.call(name, args, progress_callback=progressed)
        # The last one and the result may be read at once, and then this client drops it.
        return {"seen": [it for it in seen if it["progress"] != it["total"]], "result": result}

    async def cancel(self, name, args):
        began = asyncio.Event()
        seen = []

        async def progressed(progress, total, message):
            if not seen:
                seen.append({"progress": progress, "total": total, "message": message})
            began.set()

        request_id = getattr(self.client, "_request_id", None)
        task = asyncio.create_task(self.call(name, args, progress_callback=progressed))
        async with asyncio.timeout(PATIENCE):
            await began.wait()
        if not IS_V2:
            # This client tells the server nothing when a call is dropped.
            params = types.CancelledNotificationParams(requestId=request_id, reason="caller cancelled")
            notice = types.CancelledNotification(method="notifications/cancelled", params=params)
            await self.client.send_notification(types.ClientNotification(notice))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return {"seen": seen}

    async def ask(self, name, args, how):
        self.answer, self.asked = how, []
        try:
            result = await self.call(name, args)
        except Exception as error:  # noqa: BLE001
            return {"asked": self.asked, "error": said(error)}
        return {"asked": self.asked, "result": result}

    async def logs(self, name, args, level):
        self.notices.clear()
        if self.is_modern:
            await self.call(name, args, meta={"io.modelcontextprotocol/logLevel": level})
        else:
            await self.client.set_logging_level(level)
            await self.call(name, args)
        seen = []
        while not seen or seen[-1]["level"] != "emergency":
            seen.append((await self.noticed(lambda it: it["method"] == "notifications/message"))["params"])
        return seen

    async def updates(self, uri, name, args):
        if self.is_modern:
            async with self.client.listen(resource_subscriptions=[uri]) as events:
                await self.call(name, args)
                async with asyncio.timeout(PATIENCE):
                    event = await anext(aiter(events))
                await self.call(name, args)
            return {"uri": str(event.uri)}
        await self.client.subscribe_resource(uri)
        await self.call(name, args)
        wanted = "notifications/resources/updated"
        seen = await self.noticed(lambda it: it["method"] == wanted and it["params"]["uri"] == uri)
        await self.call(name, args)
        await self.client.unsubscribe_resource(uri)
        return {"uri": seen["params"]["uri"]}

    async def grows(self, name, args, which):
        before = {it: len(await self.lists(it)) for it in which}
        self.notices = [it for it in self.notices if not it["method"].endswith("list_changed")]
        async with contextlib.AsyncExitStack() as open_now:
            if self.is_modern:
                flags = {"tools_list_changed": True, "prompts_list_changed": True, "resources_list_changed": True}
                await open_now.enter_async_context(self.client.listen(**flags))
            result = await self.call(name, args)
            after = {}
            for one in which:
                after[one] = await self.lists(one)
                while len(after[one]) == before[one]:
                    await self.noticed(lambda it, one=one: it["method"] == f"notifications/{one}/list_changed")
                    after[one] = await self.lists(one)
        return {"result": result, "after": after}

    async def run(self, client, server):
        self.client = client
        seen = [{"step": "server", **server}]
        for which in ("tools", "resources", "templates", "prompts"):
            seen.append({"step": which, "result": await self.lists(which)})
        for act, *rest in STEPS:
            step = json.dumps([act, *rest], ensure_ascii=False)
            try:
                seen.append({"step": step, "result": await getattr(self, act)(*rest)})
            except Exception as error:  # noqa: BLE001
                seen.append({"step": step, "error": said(error)})
        return seen


def finish(seen):
    json.dump(seen, sys.stdout)
    sys.stdout.flush()


async def main():
    driver = Driver()
    server = mcp.StdioServerParameters(command=COMMAND, args=ARGS, env=dict(os.environ))
    callbacks = {
        "elicitation_callback": driver.elicit,
        "sampling_callback": driver.sample,
        "list_roots_callback": driver.roots,
        "message_handler": driver.heard,
    }
    tools = {"sampling_capabilities": types.SamplingCapability(tools=types.SamplingToolsCapability())}
    if IS_V2:
        async with mcp.Client(server, mode=MODE, cache=None, **callbacks, **tools) as client:
            driver.is_modern = client.protocol_version >= "2026"
            about = {
                "info": plain(client.server_info),
                "capabilities": plain(client.server_capabilities),
                "instructions": client.instructions,
            }
            finish(await driver.run(client, about))
    else:
        async with (
            mcp.stdio_client(server) as (read, write),
            mcp.ClientSession(read, write, **callbacks, **tools) as client,
        ):
            hello = await client.initialize()
            about = {"info": plain(hello.serverInfo), "capabilities": plain(hello.capabilities), "instructions": hello.instructions}
            complete, read_resource = client.complete, client.read_resource
            client.complete = lambda ref, argument, context: complete(ref, argument, context)
            client.read_resource = lambda uri: read_resource(types.AnyUrl(uri))
            finish(await driver.run(client, about))


async def play():
    """This client of 1.x may stumble over what a server still says while it is being left."""
    try:
        await main()
    except* anyio.BrokenResourceError:
        if IS_V2:
            raise


asyncio.run(play())
