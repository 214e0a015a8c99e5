//! The operators' API over HTTP or HTTPS. Every call has limits on time and size; an error tells apart "no
//! server", "not the right server", "wrong token" and "the server says no", because the remedies
//! differ.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_controlplane::api::TLS_REQUIRED;
use skein_controlplane::api::types::{
    Agent, AgentList, BASE_PATH, ErrorReply, HEADER_OUTPUT_COMPLETE, TaskDetail, TaskHost,
    TransferDetail, TransferHost, Upload,
};
use ureq::http::{Response, header};
use ureq::{Body, SendBody};

use crate::connection::Connection;
use crate::error::CliError;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest wait for an answer to begin: an upload is hashed and flushed before it is answered.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
/// Who follows work waits this long for a server that restarts.
const RESTART_TIME_MAX: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Largest JSON answer: 10,000 agents with all their facts stay far below.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Output of one task on one host that is fetched at a time.
const OUTPUT_CHUNK_BYTES: u64 = 1 << 20;

/// Parameters of a query.
pub type Query<'a> = &'a [(&'a str, String)];

/// A connection to the API.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    connection: Connection,
}

impl Client {
    /// A client; nothing is sent yet.
    pub fn new(connection: Connection) -> Result<Self, CliError> {
        let config = ureq::Agent::config_builder();
        let config = match connection.is_https() {
            true => config.tls_config(connection.trust.tls()?),
            false => config,
        };
        let config = config
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .timeout_recv_response(Some(ANSWER_TIME_MAX))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("skein/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), connection })
    }

    /// Address of the API.
    pub fn api(&self) -> &str {
        &self.connection.api
    }

    /// GET.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: Query) -> Result<T, CliError> {
        let request = self.agent.get(self.url(path)).query_pairs(pairs(query));
        let request = request.header(header::AUTHORIZATION, self.bearer());
        self.read(path, request.call())
    }

    /// GET by somebody who follows work that goes on without us: while control restarts (it is
    /// killed and upgraded alone) the question is asked again.
    pub fn get_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        query: Query,
    ) -> Result<T, CliError> {
        let started = Instant::now();
        loop {
            match self.get(path, query) {
                Err(CliError::Unreachable { .. }) if started.elapsed() < RESTART_TIME_MAX => {
                    std::thread::sleep(RETRY_INTERVAL);
                }
                answer => return answer,
            }
        }
    }

    /// POST of a JSON body.
    pub fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        let request = self.agent.post(self.url(path)).header(header::AUTHORIZATION, self.bearer());
        self.read(path, request.send_json(body))
    }

    /// PUT of a JSON body.
    pub fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        let request = self.agent.put(self.url(path)).header(header::AUTHORIZATION, self.bearer());
        self.read(path, request.send_json(body))
    }

    /// DELETE.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let request =
            self.agent.delete(self.url(path)).header(header::AUTHORIZATION, self.bearer());
        self.read(path, request.call())
    }

    /// Puts a file into the server's cache.
    pub fn upload(
        &self,
        query: Query,
        length: u64,
        content: &mut dyn Read,
    ) -> Result<Upload, CliError> {
        let request = self.agent.put(self.url("/uploads")).query_pairs(pairs(query));
        let request = request
            .header(header::AUTHORIZATION, self.bearer())
            .header(header::CONTENT_LENGTH, length);
        self.read("/uploads", request.send(SendBody::from_reader(content)))
    }

    /// GET of an answer that goes on until the reader has enough.
    pub fn follow(&self, path: &str, query: Query) -> Result<BufReader<impl Read>, CliError> {
        let request = self.agent.get(self.url(path)).query_pairs(pairs(query));
        let request = request.header(header::AUTHORIZATION, self.bearer());
        let response = self.judge(path, request.call())?;
        Ok(BufReader::new(response.into_body().into_reader()))
    }

    /// A piece of a host's output from `offset`, and whether nothing will follow after it.
    pub fn task_output(
        &self,
        task_id: &str,
        agent_id: &str,
        offset: u64,
    ) -> Result<(Vec<u8>, bool), CliError> {
        let path = format!("/tasks/{task_id}/output");
        let request = self.agent.get(self.url(&path)).query_pairs([
            ("agent_id", agent_id),
            ("offset", &offset.to_string()),
            ("limit", &OUTPUT_CHUNK_BYTES.to_string()),
        ]);
        let request = request.header(header::AUTHORIZATION, self.bearer());
        let mut response = self.judge(&path, request.call())?;
        let complete =
            response.headers().get(HEADER_OUTPUT_COMPLETE).is_some_and(|value| value == "true");
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let data = body.map_err(|error| self.unreachable(&error))?;
        let last = complete && (data.len() as u64) < OUTPUT_CHUNK_BYTES;
        Ok((data, last))
    }

    /// All agents that a selector matches (empty: all), over all pages.
    pub fn agents(&self, selector: &str) -> Result<Vec<Agent>, CliError> {
        let mut agents = Vec::new();
        let mut after = None;
        loop {
            let mut query = Vec::new();
            query.extend((!selector.is_empty()).then(|| ("selector", selector.to_owned())));
            query.extend(after.take().map(|after| ("after", after)));
            let page: AgentList = self.get("/agents", &query)?;
            agents.extend(page.agents);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(agents),
            }
        }
    }

    /// One transfer with all its hosts.
    pub fn transfer(&self, id: &str) -> Result<TransferDetail, CliError> {
        let path = format!("/transfers/{id}");
        let mut whole: TransferDetail = self.get(&path, &[])?;
        while let Some(after) = whole.next.take() {
            let page: TransferDetail = self.get(&path, &[("after", after)])?;
            whole.hosts.extend(page.hosts);
            whole.next = page.next;
        }
        Ok(whole)
    }

    /// One task with all its hosts.
    pub fn task(&self, id: &str) -> Result<TaskDetail, CliError> {
        let path = format!("/tasks/{id}");
        let mut whole: TaskDetail = self.get(&path, &[])?;
        while let Some(after) = whole.next.take() {
            let page: TaskDetail = self.get(&path, &[("after", after)])?;
            whole.hosts.extend(page.hosts);
            whole.next = page.next;
        }
        Ok(whole)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{BASE_PATH}{path}", self.connection.api)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.connection.token)
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        result: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, CliError> {
        let mut response = self.judge(path, result)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let bytes = body.map_err(|error| self.unreachable(&error))?;
        // An empty body is what a server sends when there is nothing to say.
        let bytes = if bytes.is_empty() { b"{}".to_vec() } else { bytes };
        serde_json::from_slice(&bytes)
            .map_err(|error| CliError::Protocol { path: path.into(), reason: error.to_string() })
    }

    fn judge(
        &self,
        path: &str,
        result: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, CliError> {
        let mut response = result.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.body_mut().with_config().limit(1 << 20).read_to_vec();
        let reply: Option<ErrorReply> =
            body.ok().and_then(|body| serde_json::from_slice(&body).ok());
        Err(match (status.as_u16(), reply) {
            (401 | 403, _) => CliError::Unauthorised(format!(
                "the server at {} does not accept this admin token",
                self.connection.api
            )),
            (_, Some(reply)) if reply.error.code == TLS_REQUIRED => {
                self.untrusted(format!("{}: use https://", reply.error.message))
            }
            (_, Some(ErrorReply { error })) => {
                CliError::Refused { code: error.code, message: error.message }
            }
            (code, None) => {
                CliError::Protocol { path: path.into(), reason: format!("HTTP status {code}") }
            }
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> CliError {
        match error {
            ureq::Error::Rustls(tls) => self.untrusted(self.connection.trust.explain(tls)),
            ureq::Error::Io(io) => self.broken(io),
            other => CliError::Unreachable { api: self.api().into(), reason: other.to_string() },
        }
    }

    /// What an error of the connection means.
    pub fn broken(&self, error: &io::Error) -> CliError {
        if let Some(tls) = error.get_ref().and_then(|source| source.downcast_ref()) {
            return self.untrusted(self.connection.trust.explain(tls));
        }
        let reason = match error.kind() {
            // The libraries' texts on this speak to programmers.
            io::ErrorKind::UnexpectedEof => "the connection broke off".to_owned(),
            _ => error.to_string(),
        };
        CliError::Unreachable { api: self.api().into(), reason }
    }

    fn untrusted(&self, reason: String) -> CliError {
        CliError::Insecure { api: self.connection.api.clone(), reason }
    }
}

fn pairs<'a>(query: Query<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    query.iter().map(|(name, value)| (*name, value.as_str()))
}

/// Whether a host of a transfer received its file.
pub fn transfer_done(host: &TransferHost) -> bool {
    host.state == skein_controlplane::api::types::TransferHostState::Done
}

/// The word that JSON has for a state.
pub fn word<T: Serialize>(state: &T) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

/// The hosts of a task as people name them: by host name where that is one host's alone.
pub fn host_names<'a>(task: &'a TaskDetail) -> impl Fn(&TaskHost) -> String + 'a {
    let mut agents = BTreeMap::new();
    for host in &task.hosts {
        *agents.entry(host.hostname.as_str()).or_insert(0) += 1;
    }
    move |host| match agents.get(host.hostname.as_str()) {
        Some(1) if !host.hostname.is_empty() => host.hostname.clone(),
        _ => host.agent_id.clone(),
    }
}
