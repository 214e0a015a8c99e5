//! Streams (where records are written) and routes (which data id goes to which stream).
//!
//! Both are few and change rarely: all of them make one [`RoutingTable`], which is sent whole to
//! every data process at its registration and at each change. Names are unique, ids are allocated
//! by counters in the store, and every path is inside an allowed root before it is stored.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skein_wire::fleet::v1::{FileStream, RoutingTable, stream};

use crate::api::types::{Route, RouteRequest, Stream, StreamRequest};
use crate::clock;
use crate::fleet::Fleet;
use crate::store::ext::{Update, decode, encode};
use crate::store::{Batch, Condition, Store, StoreError, StoreExt};

const STREAMS: &str = "routing/stream/";
const ROUTES: &str = "routing/route/";
const NEXT_STREAM: &str = "routing/next-stream-id";
const NEXT_DATA_ID: &str = "routing/next-data-id";

/// Data ids are allocated from here, as GSE's products expect.
pub const DATA_ID_FIRST: u32 = 1_500_000;
/// The last data id.
pub const DATA_ID_LAST: u32 = 2_097_151;
/// Streams of one server.
pub const STREAMS_MAX: usize = 4_096;
/// Routes of one server: a table of them stays below 2 MiB.
pub const ROUTES_MAX: usize = 16_384;
const NAME_BYTES_MAX: usize = 64;
const TEMPLATE_BYTES_MAX: usize = 256;
const TEMPLATE: &str = "{data_id}/{date}.{writer}.log";
const PLACEHOLDERS: [&str; 5] = ["data_id", "date", "hour", "writer", "stream"];
const ROTATE_BYTES: u64 = 1 << 30;
const ROTATE_BYTES_MIN: u64 = 64 * 1024;
const FLUSH_INTERVAL_MS: u32 = 100;
const FLUSH_INTERVAL_MS_MAX: u32 = 10_000;

/// Why a stream or route is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// A field of the request.
    #[error("{0}")]
    Invalid(String),
    /// The name is taken.
    #[error("{kind} {name:?} exists already; choose another name or remove it first")]
    Exists {
        /// `stream` or `route`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Nothing of that name.
    #[error("there is no {kind} {name:?}; `skein {kind} ls` lists them")]
    Unknown {
        /// `stream` or `route`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Routes lead to it.
    #[error("stream {name:?} is used by route {route:?}; remove that first")]
    InUse {
        /// The stream.
        name: String,
        /// One of its routes.
        route: String,
    },
    /// The same pair twice.
    #[error("data id {data_id} is routed to stream {stream:?} already, by route {route:?}")]
    Doubled {
        /// The data id.
        data_id: u32,
        /// The stream.
        stream: String,
        /// The route that exists.
        route: String,
    },
    /// No more room.
    #[error("there are {0} already, which is the limit")]
    Full(usize),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Default)]
struct State {
    streams: BTreeMap<String, Stream>,
    routes: BTreeMap<String, Route>,
    revision: u64,
}

/// Streams and routes.
#[derive(Debug)]
pub struct Routing {
    store: Arc<dyn Store>,
    /// File streams write below one of these; the first is the default.
    roots: Vec<PathBuf>,
    state: Mutex<State>,
    /// Changes are made one at a time: checks and writes belong together.
    changing: tokio::sync::Mutex<()>,
}

fn invalid<T>(why: String) -> Result<T, RoutingError> {
    Err(RoutingError::Invalid(why))
}

impl Routing {
    /// Loads what is stored.
    pub async fn load(store: Arc<dyn Store>, roots: Vec<PathBuf>) -> Result<Self, StoreError> {
        let mut state = State { revision: store.revision(), ..State::default() };
        for entry in store.range_all(STREAMS).await? {
            let stream: Stream = decode(&entry)?;
            state.streams.insert(stream.name.clone(), stream);
        }
        for entry in store.range_all(ROUTES).await? {
            let route: Route = decode(&entry)?;
            state.routes.insert(route.name.clone(), route);
        }
        Ok(Self { store, roots, state: Mutex::new(state), changing: tokio::sync::Mutex::new(()) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as data processes take it.
    pub fn table(&self) -> RoutingTable {
        let state = self.lock();
        let stream = |stream: &Stream| skein_wire::fleet::v1::Stream {
            stream_id: stream.stream_id,
            name: stream.name.clone(),
            sink: Some(stream::Sink::File(FileStream {
                directory: stream.directory.clone(),
                path_template: stream.path_template.clone(),
                format: stream.format.clone(),
                rotate_bytes: stream.rotate_bytes,
                rotate_seconds: stream.rotate_seconds,
                flush_interval_ms: stream.flush_interval_ms,
                durability: stream.durability.clone(),
            })),
        };
        let route = |route: &Route| skein_wire::fleet::v1::Route {
            name: route.name.clone(),
            data_id: route.data_id,
            stream_id: route.stream_id,
        };
        RoutingTable {
            revision: state.revision,
            streams: state.streams.values().map(stream).collect(),
            routes: state.routes.values().map(route).collect(),
        }
    }

    /// All streams, in order of name.
    pub fn streams(&self) -> Vec<Stream> {
        self.lock().streams.values().cloned().collect()
    }

    /// All routes, in order of data id, then name.
    pub fn routes(&self) -> Vec<Route> {
        let mut routes: Vec<Route> = self.lock().routes.values().cloned().collect();
        routes.sort_by(|a, b| (a.data_id, &a.name).cmp(&(b.data_id, &b.name)));
        routes
    }

    async fn allocate(&self, key: &str, first: u32) -> Result<u32, StoreError> {
        let take = |next: Option<u32>| {
            let id = next.unwrap_or(first);
            Update::Write(id + 1, id)
        };
        self.store.update_json(key, take).await
    }

    /// Makes a stream and pushes the table.
    pub async fn add_stream(
        &self,
        request: StreamRequest,
        fleet: &Fleet,
    ) -> Result<Stream, RoutingError> {
        let mut stream = self.check_stream(request)?;
        let _changing = self.changing.lock().await;
        {
            let state = self.lock();
            if state.streams.contains_key(&stream.name) {
                return Err(RoutingError::Exists { kind: "stream", name: stream.name });
            }
            if state.streams.len() >= STREAMS_MAX {
                return Err(RoutingError::Full(STREAMS_MAX));
            }
        }
        stream.stream_id = self.allocate(NEXT_STREAM, 1).await?;
        let key = format!("{STREAMS}{}", stream.name);
        let batch = Batch::new().when(Condition::Absent(key.clone())).put(key, encode(&stream)?);
        let revision = self.store.commit(batch).await?;
        self.apply(revision, fleet, |state| {
            state.streams.insert(stream.name.clone(), stream.clone());
        })
        .await;
        Ok(stream)
    }

    /// Replaces a stream's settings and pushes the table; its id and routes stay.
    pub async fn change_stream(
        &self,
        name: &str,
        mut request: StreamRequest,
        fleet: &Fleet,
    ) -> Result<Stream, RoutingError> {
        if request.name.is_empty() {
            request.name = name.to_owned();
        }
        if request.name != name {
            return invalid(format!("a stream keeps its name; {name:?} cannot become another"));
        }
        let mut stream = self.check_stream(request)?;
        let _changing = self.changing.lock().await;
        let before = self.lock().streams.get(name).cloned();
        let Some(before) = before else {
            return Err(RoutingError::Unknown { kind: "stream", name: name.to_owned() });
        };
        stream.stream_id = before.stream_id;
        stream.created_ms = before.created_ms;
        let revision = self.store.put_json(&format!("{STREAMS}{name}"), &stream).await?;
        self.apply(revision, fleet, |state| {
            state.streams.insert(stream.name.clone(), stream.clone());
        })
        .await;
        Ok(stream)
    }

    /// Removes a stream that no route uses.
    pub async fn remove_stream(&self, name: &str, fleet: &Fleet) -> Result<(), RoutingError> {
        let _changing = self.changing.lock().await;
        {
            let state = self.lock();
            if !state.streams.contains_key(name) {
                return Err(RoutingError::Unknown { kind: "stream", name: name.to_owned() });
            }
            if let Some(route) = state.routes.values().find(|route| route.stream == name) {
                let route = route.name.clone();
                return Err(RoutingError::InUse { name: name.to_owned(), route });
            }
        }
        let revision = self.store.commit(Batch::new().delete(format!("{STREAMS}{name}"))).await?;
        self.apply(revision, fleet, |state| drop(state.streams.remove(name))).await;
        Ok(())
    }

    /// Makes a route and pushes the table.
    pub async fn add_route(
        &self,
        request: RouteRequest,
        fleet: &Fleet,
    ) -> Result<Route, RoutingError> {
        let _changing = self.changing.lock().await;
        let stream = self.lock().streams.get(&request.stream).cloned();
        let Some(stream) = stream else {
            return Err(RoutingError::Unknown { kind: "stream", name: request.stream });
        };
        let data_id = match request.data_id {
            Some(0) => return invalid("data id 0 does not exist; leave it out to get one".into()),
            Some(data_id) if data_id > DATA_ID_LAST => {
                return invalid(format!("data id {data_id} is above {DATA_ID_LAST}"));
            }
            Some(data_id) => data_id,
            None => self.free_data_id().await?,
        };
        let name = request.name.unwrap_or_else(|| format!("{data_id}-{}", stream.name));
        check_name("route", &name)?;
        {
            let state = self.lock();
            if state.routes.contains_key(&name) {
                return Err(RoutingError::Exists { kind: "route", name });
            }
            let same = |route: &&Route| route.data_id == data_id && route.stream == stream.name;
            if let Some(route) = state.routes.values().find(same) {
                let (stream, route) = (stream.name, route.name.clone());
                return Err(RoutingError::Doubled { data_id, stream, route });
            }
            if state.routes.len() >= ROUTES_MAX {
                return Err(RoutingError::Full(ROUTES_MAX));
            }
        }
        let route = Route {
            name: name.clone(),
            data_id,
            stream: stream.name.clone(),
            stream_id: stream.stream_id,
            created_ms: clock::now_ms(),
        };
        let batch = Batch::new()
            .when(Condition::Present(format!("{STREAMS}{}", stream.name)))
            .put(format!("{ROUTES}{name}"), encode(&route)?);
        let revision = self.store.commit(batch).await?;
        self.apply(revision, fleet, |state| drop(state.routes.insert(name, route.clone()))).await;
        Ok(route)
    }

    async fn free_data_id(&self) -> Result<u32, RoutingError> {
        loop {
            let data_id = self.allocate(NEXT_DATA_ID, DATA_ID_FIRST).await?;
            if data_id > DATA_ID_LAST {
                return invalid(format!("all data ids to {DATA_ID_LAST} were given out; name one"));
            }
            // Operators may have named one in the range themselves.
            if self.lock().routes.values().all(|route| route.data_id != data_id) {
                return Ok(data_id);
            }
        }
    }

    /// Removes a route; lanes of a data id without route are held from then on.
    pub async fn remove_route(&self, name: &str, fleet: &Fleet) -> Result<(), RoutingError> {
        let _changing = self.changing.lock().await;
        if !self.lock().routes.contains_key(name) {
            return Err(RoutingError::Unknown { kind: "route", name: name.to_owned() });
        }
        let revision = self.store.commit(Batch::new().delete(format!("{ROUTES}{name}"))).await?;
        self.apply(revision, fleet, |state| drop(state.routes.remove(name))).await;
        Ok(())
    }

    async fn apply(&self, revision: u64, fleet: &Fleet, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            change(&mut state);
            state.revision = revision;
        }
        fleet.set_table(self.table()).await;
    }

    fn check_stream(&self, request: StreamRequest) -> Result<Stream, RoutingError> {
        check_name("stream", &request.name)?;
        let directory = match &request.directory {
            Some(directory) => self.check_directory(directory)?,
            None => self.roots[0].join(&request.name),
        };
        let path_template = request.path_template.unwrap_or_else(|| TEMPLATE.into());
        check_template(&path_template)?;
        let format = request.format.unwrap_or_else(|| "lines".into());
        if !["lines", "tagged", "json"].contains(&format.as_str()) {
            return invalid(format!("format {format:?} does not exist; lines, tagged or json"));
        }
        let durability = request.durability.unwrap_or_else(|| "power".into());
        if !["power", "process"].contains(&durability.as_str()) {
            return invalid(format!("durability {durability:?} does not exist; power or process"));
        }
        let flush_interval_ms = request.flush_interval_ms.unwrap_or(FLUSH_INTERVAL_MS);
        if !(1..=FLUSH_INTERVAL_MS_MAX).contains(&flush_interval_ms) {
            return invalid(format!("flush_interval_ms must be 1 to {FLUSH_INTERVAL_MS_MAX}"));
        }
        let rotate_bytes = request.rotate_bytes.unwrap_or(ROTATE_BYTES);
        if rotate_bytes != 0 && rotate_bytes < ROTATE_BYTES_MIN {
            return invalid(format!("rotate_bytes must be 0 or at least {ROTATE_BYTES_MIN}"));
        }
        Ok(Stream {
            stream_id: 0,
            name: request.name,
            kind: "file".into(),
            directory: directory.to_string_lossy().into_owned(),
            path_template,
            format,
            rotate_bytes,
            rotate_seconds: request.rotate_seconds.unwrap_or(0),
            flush_interval_ms,
            durability,
            created_ms: clock::now_ms(),
        })
    }

    fn check_directory(&self, directory: &str) -> Result<PathBuf, RoutingError> {
        let path = Path::new(directory);
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
        if !path.is_absolute() || !path.components().all(plain) || directory.contains('\0') {
            return invalid(format!(
                "directory {directory:?} must be an absolute path without `..`"
            ));
        }
        if !self.roots.iter().any(|root| path.starts_with(root)) {
            let roots: Vec<_> = self.roots.iter().map(|root| root.to_string_lossy()).collect();
            return invalid(format!(
                "directory {directory:?} is outside the allowed roots ({}); add a root to \
                 control.sink_roots in server.toml",
                roots.join(", ")
            ));
        }
        Ok(path.to_owned())
    }
}

fn check_name(kind: &str, name: &str) -> Result<(), RoutingError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed);
    match good && !name.starts_with('.') {
        true => Ok(()),
        false => invalid(format!(
            "{kind} name {name:?} must be 1 to {NAME_BYTES_MAX} of A-Za-z0-9._- and not begin \
             with a dot"
        )),
    }
}

fn check_template(template: &str) -> Result<(), RoutingError> {
    let refuse = |why: &str| {
        let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ");
        invalid(format!("path template {template:?} {why}; it may use {known}"))
    };
    if template.is_empty() || template.len() > TEMPLATE_BYTES_MAX || template.contains('\0') {
        return refuse("is empty or too long");
    }
    let mut rest = template;
    while let Some(open) = rest.find(['{', '}']) {
        let Some(close) = rest[open..].find('}').filter(|_| rest[open..].starts_with('{')) else {
            return refuse("has a brace without its partner");
        };
        let name = &rest[open + 1..open + close];
        if !PLACEHOLDERS.contains(&name) {
            return refuse(&format!("uses {{{name}}}, which does not exist"));
        }
        rest = &rest[open + close + 1..];
    }
    let parts = template.split('/');
    if template.starts_with('/')
        || parts.clone().any(|part| part.is_empty() || part == ".." || part == ".")
    {
        return refuse("must be a relative path without empty parts, `.` and `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_names_are_checked() {
        for good in ["{writer}.log", "{data_id}/{date}/{hour}.{writer}", "{stream}-{writer}"] {
            check_template(good).unwrap();
        }
        for (wrong, hint) in [
            ("", "empty"),
            ("/{writer}", "relative"),
            ("../{writer}", "relative"),
            ("a//{writer}", "relative"),
            ("{host}{writer}", "does not exist"),
            ("{writer", "partner"),
            ("writer}", "partner"),
        ] {
            let error = check_template(wrong).unwrap_err().to_string();
            assert!(error.contains(hint), "{wrong}: {error}");
        }
        for wrong in ["", ".x", "a/b", "a b", "..", &"x".repeat(65)] {
            assert!(check_name("stream", wrong).is_err(), "{wrong}");
        }
    }
}
