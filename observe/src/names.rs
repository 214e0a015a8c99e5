//! The catalogue: every metric of every process, declared once with its kind, unit, labels, HELP
//! text and process. A metric is used by its constant, `metrics::counter!(names::DATA_RECORDS_STORED,
//! "stream" => name)`, and appears in `docs/metrics.md` by being here.
//!
//! Rules: a counter ends in `_total`; a unit is the last word before that (`_seconds`, `_bytes`);
//! labels have few values (a data id, a stream, a kind: never an agent, a path or an address); the
//! constant is the name without `skein_`, unit and `_total` kept only where the meaning needs them.

use std::fmt;

/// How a metric moves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only rises while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of samples per bucket, with sum and count.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// What a metric's number counts; it stands in the name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Things: the name says which.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// One number by another.
    Ratio,
}

/// Which process has the metric.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Process {
    /// Every one.
    Any,
    /// The server's data process.
    Data,
    /// The server's control process.
    Control,
    /// The agent's worker.
    Agent,
}

/// One entry of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name as Prometheus sees it.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// One sentence for the operator.
    pub help: &'static str,
    /// Who has it.
    pub process: Process,
}

/// All metrics, sorted by process and then as declared.
pub fn all() -> &'static [Metric] {
    CATALOGUE
}

/// The unit that a name ends in.
const fn unit_of(name: &str) -> Unit {
    if ends_with(name, "_seconds") || ends_with(name, "_seconds_total") {
        Unit::Seconds
    } else if ends_with(name, "_bytes") || ends_with(name, "_bytes_total") {
        Unit::Bytes
    } else if ends_with(name, "_ratio") {
        Unit::Ratio
    } else {
        Unit::None
    }
}

const fn ends_with(text: &str, end: &str) -> bool {
    let (text, end) = (text.as_bytes(), end.as_bytes());
    if text.len() < end.len() {
        return false;
    }
    let mut index = 0;
    while index < end.len() {
        if text[text.len() - end.len() + index] != end[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// Declares constants and catalogue together: `CONSTANT = Kind "name" [labels] "help";`.
macro_rules! catalogue {
    ($($process:ident { $($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)* })*) => {
        $($(#[doc = $help] pub const $constant: &str = $name;)*)*
        const CATALOGUE: &[Metric] = &[$($(Metric {
            name: $name,
            kind: Kind::$kind,
            unit: unit_of($name),
            labels: &[$($label),*],
            help: $help,
            process: Process::$process,
        },)*)*];
    };
}

catalogue! {
    Any {
        BUILD_INFO = Gauge "skein_build_info" ["version"] "Always 1; the label tells the version that runs.";
        ADMIN_REQUESTS = Counter "skein_admin_requests_total" ["code"] "Requests answered by the admin endpoint, by HTTP status.";
        PROCESS_CPU_SECONDS = Counter "process_cpu_seconds_total" [] "User and system CPU time of the process.";
        PROCESS_RESIDENT_MEMORY_BYTES = Gauge "process_resident_memory_bytes" [] "Resident memory of the process.";
        PROCESS_VIRTUAL_MEMORY_BYTES = Gauge "process_virtual_memory_bytes" [] "Virtual memory of the process.";
        PROCESS_OPEN_FDS = Gauge "process_open_fds" [] "Open file descriptors of the process.";
        PROCESS_MAX_FDS = Gauge "process_max_fds" [] "Limit of open file descriptors of the process.";
        PROCESS_THREADS = Gauge "process_threads" [] "Threads of the process.";
        PROCESS_START_TIME_SECONDS = Gauge "process_start_time_seconds" [] "When the process started, in seconds since 1970.";
    }
    Data {
        DATA_CONNECTIONS_ACCEPTED = Counter "skein_data_connections_accepted_total" ["port"] "Connections accepted, by listening port kind (signal, data, file).";
        DATA_CONNECTIONS_REFUSED = Counter "skein_data_connections_refused_total" ["reason"] "Connections refused before a session existed.";
        DATA_HANDSHAKES = Counter "skein_data_handshakes_total" ["result"] "TLS handshakes finished, by result.";
        DATA_HANDSHAKE_SECONDS = Histogram "skein_data_handshake_seconds" [] "Time from accept to a finished TLS handshake.";
        DATA_SESSIONS = Gauge "skein_data_sessions" ["kind"] "Sessions that live now, by channel kind.";
        DATA_SESSIONS_OPENED = Counter "skein_data_sessions_opened_total" ["kind"] "Sessions that passed HELLO, by channel kind.";
        DATA_SESSIONS_CLOSED = Counter "skein_data_sessions_closed_total" ["kind", "reason"] "Sessions that ended, by channel kind and reason.";
        DATA_PROTOCOL_ERRORS = Counter "skein_data_protocol_errors_total" ["kind", "error"] "Sessions closed because a peer broke the protocol or a limit.";
        DATA_IDENTITY_CONFLICTS = Counter "skein_data_identity_conflicts_total" [] "Second instances of a living agent identity that were refused.";
        DATA_SOCKET_RECEIVED_BYTES = Counter "skein_data_socket_received_bytes_total" ["kind"] "Bytes received from sockets, TLS included, by channel kind.";
        DATA_SOCKET_SENT_BYTES = Counter "skein_data_socket_sent_bytes_total" ["kind"] "Bytes sent to sockets, TLS included, by channel kind.";
        DATA_HEARTBEATS = Counter "skein_data_heartbeats_total" [] "Heartbeats received from agents.";
        DATA_AGENTS_LOST = Counter "skein_data_agents_lost_total" [] "Sessions declared lost because heartbeats stayed away.";
        DATA_SELF_DOUBTS = Counter "skein_data_self_doubts_total" [] "Times that a shard found itself stalled and gave all agents a fresh deadline.";
        DATA_SHARD_LOOP_LAG_SECONDS = Histogram "skein_data_shard_loop_lag_seconds" ["shard"] "How late a shard's loop met its timer.";
        DATA_SHARD_BUFFERS_BYTES = Gauge "skein_data_shard_buffers_bytes" ["shard"] "Memory in buffers that the shard has lent to sessions.";
        DATA_FLEET_LINK_UP = Gauge "skein_data_fleet_link_up" [] "1 while the link to the control process is up.";
        DATA_FLEET_QUEUE_BYTES = Gauge "skein_data_fleet_queue_bytes" [] "Bytes waiting for the control process.";
        DATA_FLEET_DROPPED = Counter "skein_data_fleet_messages_dropped_total" ["message"] "Messages to the control process dropped because its queue was full.";
        DATA_BATCHES_RECEIVED = Counter "skein_data_batches_received_total" ["data_id"] "Batches received from agents.";
        DATA_RECORDS_RECEIVED = Counter "skein_data_records_received_total" ["data_id"] "Records received from agents, repeats included.";
        DATA_RECEIVED_BYTES = Counter "skein_data_batches_received_bytes_total" ["data_id"] "Bytes of batches received, as compressed by the agent.";
        DATA_RECORDS_DUPLICATE = Counter "skein_data_records_duplicate_total" ["data_id"] "Records that were recognised as repeats and not stored again.";
        DATA_RECORDS_MISSING = Counter "skein_data_records_missing_total" ["data_id"] "Records that an agent dropped before it could send them.";
        DATA_BATCHES_REFUSED = Counter "skein_data_batches_refused_total" ["reason"] "Batches that broke a rule: checksum, decompression, order, credit.";
        DATA_ACKS_SENT = Counter "skein_data_acks_sent_total" [] "Acknowledgements sent to agents.";
        DATA_CREDITS_SENT = Counter "skein_data_credits_sent_total" [] "Credits (leave to send more of a lane) sent to agents.";
        DATA_LANES = Gauge "skein_data_lanes" ["state"] "Lanes open on this process, by state (flowing, held).";
        DATA_LANES_HELD = Counter "skein_data_lanes_held_total" ["reason"] "Times that a lane was held, by reason.";
        DATA_ROUTER_QUEUE_BYTES = Gauge "skein_data_router_queue_bytes" ["worker"] "Bytes of batches that wait for a router worker.";
        DATA_ROUTER_QUEUE_MESSAGES = Gauge "skein_data_router_queue_messages" ["worker"] "Messages that wait for a router worker.";
        DATA_SINK_RECORDS = Counter "skein_data_sink_records_total" ["stream"] "Records written and flushed to a sink.";
        DATA_SINK_BYTES = Counter "skein_data_sink_bytes_total" ["stream"] "Bytes written and flushed to a sink.";
        DATA_SINK_ERRORS = Counter "skein_data_sink_errors_total" ["stream", "error"] "Failed writes or flushes of a sink.";
        DATA_SINK_FLUSH_SECONDS = Histogram "skein_data_sink_flush_seconds" ["stream"] "Time of one group flush, checkpoint included.";
        DATA_SINK_FILES_OPEN = Gauge "skein_data_sink_files_open" [] "Sink files that are open for writing.";
        DATA_SINK_ROTATIONS = Counter "skein_data_sink_rotations_total" ["stream"] "Sink files closed because of size or age.";
        DATA_SINK_BLOCKS_BYTES = Gauge "skein_data_sink_blocks_bytes" [] "Formatted bytes in memory that are not flushed yet.";
        DATA_CHECKPOINT_BYTES = Counter "skein_data_checkpoint_written_bytes_total" [] "Bytes written to checkpoint logs.";
        DATA_CHECKPOINT_ERRORS = Counter "skein_data_checkpoint_errors_total" [] "Checkpoints that could not be stored; nothing is acknowledged until one is.";
        DATA_DISK_DRIVER_INFO = Gauge "skein_data_disk_driver_info" ["driver"] "Always 1; the label tells which disk driver runs (glommio, plain).";
        DATA_TAP_RECORDS = Counter "skein_data_tap_records_total" [] "Records copied to taps.";
        DATA_TAP_SKIPPED = Counter "skein_data_tap_skipped_total" [] "Records that passed a tap and were over its rate.";
        DATA_FILE_SENT_BYTES = Counter "skein_data_file_sent_bytes_total" [] "File content sent to agents.";
        DATA_FILE_RECEIVED_BYTES = Counter "skein_data_file_received_bytes_total" [] "File content received from agents and verified.";
        DATA_FILE_TRANSFERS = Gauge "skein_data_file_transfers" ["role"] "Transfers offered (seed) or fetched (leech) now.";
        DATA_FILE_REFUSED_BLOCKS = Counter "skein_data_file_refused_blocks_total" [] "Received blocks whose hash was wrong.";
    }
    Control {
        CONTROL_API_REQUESTS = Counter "skein_control_api_requests_total" ["route", "code"] "API requests answered, by route and HTTP status.";
        CONTROL_API_SECONDS = Histogram "skein_control_api_seconds" ["route"] "Time of one API request.";
        CONTROL_CONNECTIONS_REFUSED = Counter "skein_control_connections_refused_total" ["listener", "reason"] "Connections of the API (api) and of data processes (fleet) that were closed: nothing valid came in time (time) or within 16 KiB (bytes), handshake, plain_http where TLS is spoken, malformed, or another user.";
        CONTROL_STORE_COMMITS = Counter "skein_control_store_commits_total" [] "Commits of the store; one may carry many changes.";
        CONTROL_STORE_COMMIT_SECONDS = Histogram "skein_control_store_commit_seconds" [] "Time of one commit of the store, flush included.";
        CONTROL_STORE_CHANGES = Counter "skein_control_store_changes_total" [] "Changes committed to the store.";
        CONTROL_AGENTS = Gauge "skein_control_agents" ["state"] "Registered agents by state (online, offline, revoked).";
        CONTROL_ENROLMENTS = Counter "skein_control_enrolments_total" ["result"] "Enrolment requests, by result.";
        CONTROL_EVENTS = Counter "skein_control_events_total" ["kind"] "Events recorded for operators, by kind.";
        CONTROL_FLEET_LINKS = Gauge "skein_control_fleet_links" [] "Data processes connected.";
        CONTROL_FLEET_QUEUE_BYTES = Gauge "skein_control_fleet_queue_bytes" [] "Bytes waiting for data processes.";
        CONTROL_DISPATCHES = Counter "skein_control_dispatches_total" ["command"] "Signed dispatches, by command.";
        CONTROL_DISPATCH_TARGETS = Counter "skein_control_dispatch_targets_total" ["command"] "Agents addressed by dispatches, by command.";
        CONTROL_ORDERS_REPEATED = Counter "skein_control_orders_repeated_total" ["command"] "Orders sent to a host again because it did not answer, by command.";
        CONTROL_TASKS = Counter "skein_control_tasks_total" ["state"] "Tasks that reached a final state, by state.";
        CONTROL_TASK_SECONDS = Histogram "skein_control_task_seconds" [] "Time from submission of a task to its final state.";
        CONTROL_TASKS_OPEN = Gauge "skein_control_tasks_open" [] "Tasks without a final state.";
        CONTROL_TASK_OUTPUT_BYTES = Counter "skein_control_task_output_bytes_total" [] "Task output stored.";
        CONTROL_TRANSFERS = Counter "skein_control_transfers_total" ["state"] "Transfers to one host that reached a final state, by state.";
        CONTROL_TRANSFERS_OPEN = Gauge "skein_control_transfers_open" [] "Transfers that have unfinished hosts.";
        CONTROL_TRANSFERS_ENDED = Counter "skein_control_transfers_ended_total" ["gear", "outcome"] "Transfers whose last host ended, by gear and outcome: done (every host has the file), partial, failed (no host has it), cancelled.";
        CONTROL_TRANSFER_SECONDS = Histogram "skein_control_transfer_seconds" ["gear"] "Time from the file in the server's cache to the last host's end, of transfers that reached every host.";
        CONTROL_TRANSFER_BOUND_RATIO = Histogram "skein_control_transfer_bound_ratio" ["gear"] "That time divided by the bound that the planner computed from the rates it knew.";
        CONTROL_TRANSFER_SOURCE_RATIO = Histogram "skein_control_transfer_source_ratio" ["gear"] "Content that the server sent for a transfer divided by the size of the file, of transfers that reached every host.";
        CONTROL_TRANSFER_SOURCE_BYTES = Counter "skein_control_transfer_source_bytes_total" ["gear"] "Content that the server sent to hosts, repeats included.";
        CONTROL_TRANSFER_DELIVERED_BYTES = Counter "skein_control_transfer_delivered_bytes_total" ["gear", "region"] "Bytes that came to hosts over the network and were verified, by gear and the host's region (none, and other beyond 32 regions).";
        CONTROL_TRANSFER_PEER_BYTES = Counter "skein_control_transfer_peer_bytes_total" ["gear", "region"] "Of the delivered bytes, those that other hosts sent; divided by them it is the peer-to-peer share.";
        CONTROL_TRANSFER_BORDER_BYTES = Counter "skein_control_transfer_border_bytes_total" ["from", "to"] "Verified bytes that crossed from one region into another, by sender and receiver; the server is a place of its own. Counted when a host of a planned or mesh transfer is done.";
        CONTROL_TRANSFER_REFUSED_BLOCKS = Counter "skein_control_transfer_refused_blocks_total" ["gear"] "Blocks with a wrong hash that hosts refused, counted when a host ends.";
        CONTROL_TRANSFER_COMPLAINTS = Counter "skein_control_transfer_complaints_total" ["result"] "Complaints of hosts about parents that were late, by what became of them: settled at once, kept until it shows who is to blame, or dropped because too many waited.";
        CONTROL_KEPT = Gauge "skein_control_kept_entries" ["kind"] "Entries that the control process keeps, by kind; every kind has a bound.";
        CONTROL_TASK_OUTPUT_DISK_BYTES = Gauge "skein_control_task_output_disk_bytes" [] "Task output kept on disk.";
        CONTROL_STORE_BYTES = Gauge "skein_control_store_bytes" [] "Size of the store's file.";
        CONTROL_CACHE_BYTES = Gauge "skein_control_cache_bytes" [] "Uploaded files held in the cache.";
    }
    Agent {
        AGENT_CONNECTED = Gauge "skein_agent_connected" ["kind"] "1 while the session of this kind is up.";
        AGENT_CONNECTS = Counter "skein_agent_connects_total" ["kind", "result"] "Connection attempts, by channel kind and result.";
        AGENT_HEARTBEATS = Counter "skein_agent_heartbeats_total" [] "Heartbeats answered by the server.";
        AGENT_HEARTBEAT_SECONDS = Histogram "skein_agent_heartbeat_seconds" [] "Time from a heartbeat to its answer.";
        AGENT_INPUT_RECORDS = Counter "skein_agent_input_records_total" ["input", "data_id"] "Records taken, by input kind (collector, tail, emit).";
        AGENT_INPUT_BYTES = Counter "skein_agent_input_bytes_total" ["input", "data_id"] "Bytes of records taken, by input kind.";
        AGENT_INPUT_ERRORS = Counter "skein_agent_input_errors_total" ["input", "error"] "Input refused or connections closed, by input kind and error.";
        AGENT_INPUT_CONNECTIONS = Gauge "skein_agent_input_connections" ["input"] "Local connections open, by input kind.";
        AGENT_SPOOL_BYTES = Gauge "skein_agent_spool_bytes" ["data_id"] "Bytes in the spool that no server has acknowledged.";
        AGENT_SPOOL_RECORDS = Gauge "skein_agent_spool_records" ["data_id"] "Records in the spool that no server has acknowledged.";
        AGENT_SPOOL_DROPPED = Counter "skein_agent_spool_dropped_records_total" ["data_id", "reason"] "Records dropped because the spool was full or a lane over its share.";
        AGENT_SPOOL_DAMAGED = Counter "skein_agent_spool_damaged_bytes_total" [] "Bytes of torn or damaged segments that were cut off at start.";
        AGENT_SPOOL_ERRORS = Counter "skein_agent_spool_errors_total" ["error"] "Times that the spool's disk began to refuse writes (disk_full, disk_error).";
        AGENT_SPOOL_FLUSH_SECONDS = Histogram "skein_agent_spool_flush_seconds" [] "Time of one group flush of the spool.";
        AGENT_LANES = Gauge "skein_agent_lanes" ["state"] "Lanes of the spool, by state (flowing, held, offline).";
        AGENT_BATCHES_SENT = Counter "skein_agent_batches_sent_total" ["data_id"] "Batches sent, repeats included.";
        AGENT_RECORDS_SENT = Counter "skein_agent_records_sent_total" ["data_id"] "Records sent, repeats included.";
        AGENT_SENT_BYTES = Counter "skein_agent_batches_sent_bytes_total" ["data_id"] "Bytes of batches sent, compressed.";
        AGENT_RECORDS_ACKNOWLEDGED = Counter "skein_agent_records_acknowledged_total" ["data_id"] "Records acknowledged by a server.";
        AGENT_ACKS = Counter "skein_agent_acks_total" [] "Acknowledgements received on data channels.";
        AGENT_DATA_SESSION_ENDS = Counter "skein_agent_data_session_ends_total" ["reason"] "Data channels that ended, by reason; each is followed by a reconnect.";
        AGENT_COMMANDS_REFUSED = Counter "skein_agent_commands_refused_total" ["reason"] "Commands that did not verify, by reason.";
        AGENT_TASKS = Counter "skein_agent_tasks_total" ["state"] "Tasks that reached a final state, by state.";
        AGENT_TASKS_RUNNING = Gauge "skein_agent_tasks_running" [] "Scripts that run now.";
        AGENT_TASK_SECONDS = Histogram "skein_agent_task_seconds" [] "Run time of scripts.";
        AGENT_TRANSFERS = Counter "skein_agent_transfers_total" ["state"] "Transfers that reached a final state, by state.";
        AGENT_FILE_RECEIVED_BYTES = Counter "skein_agent_file_received_bytes_total" [] "File content received and verified.";
        AGENT_FILE_SENT_BYTES = Counter "skein_agent_file_sent_bytes_total" [] "File content sent as a source.";
        AGENT_MESH_STREAMS = Gauge "skein_agent_mesh_streams" ["direction"] "Streams with other agents that are open, by who opened them (incoming, outgoing).";
        AGENT_MESH_OPENED = Counter "skein_agent_mesh_opened_total" ["direction"] "Streams with other agents that were opened, by who opened them.";
        AGENT_MESH_REFUSED = Counter "skein_agent_mesh_refused_total" ["reason"] "Connections of others that were not let in, by reason; unknown_transfer, not_a_member and expired are those that no list allows.";
        AGENT_MESH_DIALS_FAILED = Counter "skein_agent_mesh_dials_failed_total" ["reason"] "Streams that could not be opened to a member of a transfer, by reason.";
        AGENT_MESH_ENDED = Counter "skein_agent_mesh_ended_total" ["reason"] "Streams that were ended from this side's table: removed, expired, replaced by a newer one, or over with their transfer.";
        AGENT_MESH_ORDERS = Counter "skein_agent_mesh_orders_total" ["kind", "result"] "Lists, removals and plans of transfers' members, by what became of them.";
        AGENT_FILE_REFUSED_BLOCKS = Counter "skein_agent_file_refused_blocks_total" [] "Received blocks whose hash was wrong.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in all() {
            let name = metric.name;
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
                "{name}: lower case, digits and underscores only"
            );
            let process = match metric.process {
                Process::Any => "",
                Process::Data => "skein_data_",
                Process::Control => "skein_control_",
                Process::Agent => "skein_agent_",
            };
            assert!(name.starts_with(process), "{name} must start with {process}");
            assert_eq!(
                metric.kind == Kind::Counter,
                name.ends_with("_total"),
                "{name}: counters, and only counters, end in _total"
            );
            for suffix in ["_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(suffix), "{name}: {suffix} belongs to histograms");
            }
            for word in ["_ms", "_millis", "_us", "_kb", "_mb", "_counter", "_gauge"] {
                assert!(
                    !name.contains(&format!("{word}_")) && !name.ends_with(word),
                    "{name}: {word}"
                );
            }
            assert!(
                metric.help.ends_with('.') && metric.help.len() > 15,
                "{name}: HELP is a sentence"
            );
            assert!(!metric.help.contains('\n'), "{name}: HELP is one line");
        }
    }

    #[test]
    fn names_are_unique_and_sorted_by_process() {
        let mut seen = HashSet::new();
        assert!(all().iter().all(|metric| seen.insert(metric.name)));
        assert!(all().is_sorted_by_key(|metric| metric.process));
    }
}
