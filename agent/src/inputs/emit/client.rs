//! The side of `skein-agent emit`: plain blocking code, because it has one thing to do.
//!
//! ```text
//!   caller: lines ─► requests ─► [window] ─► link thread: connect, OPEN, READY, send ─► agent
//!                                   ▲                                                     │
//!                                   └─────────── listener: KEPT ◄─────────────────────────┘
//! ```
//! Requests stay in the window until they are answered. When the agent ends in the middle, the
//! link thread waits for the next one, which says how far it is, and sends the rest again.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wire::{self, CLIENT_BYTES, FromServer, MESSAGE_BYTES_MAX, Malformed, RECORD_BYTES_MAX};
use crate::clock;
use crate::home::Home;

/// How long an agent that was there may be away.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Between two attempts to reach an agent that is away.
const AGAIN: Duration = Duration::from_millis(200);
/// How long an agent may take to answer OPEN.
const READY_TIME: Duration = Duration::from_secs(10);
/// Records are sent together up to about this many bytes.
const REQUEST_BYTES: usize = 128 * 1024;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EmitReport {
    /// Lines read.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines that are in the agent's spool for certain.
    pub acknowledged: u64,
    /// Lines longer than a record may be: their ends are missing.
    pub cut: u64,
    /// Times that the agent went away in the middle and came back.
    pub reconnects: u64,
}

/// Why not everything was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// No agent.
    #[error("cannot reach the agent at {0}: {1}; is it running, with this home?")]
    Connect(PathBuf, io::Error),
    /// Standard input.
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    /// The agent said no.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent ended and did not come back.
    #[error("the agent went away and was not back within {} s: {source}", .patience.as_secs())]
    Away {
        /// Why the last attempt to reach it failed.
        source: io::Error,
        /// How long that was tried.
        patience: Duration,
    },
}

/// Sends lines to one lane of an agent.
#[derive(Clone, Debug)]
pub struct Emitter {
    /// Of the agent.
    pub home: PathBuf,
    /// Lane that gets the lines.
    pub data_id: u32,
    /// How long an agent that was there may be away.
    pub patience: Duration,
    /// Hears that the agent went away and came back.
    pub tell: fn(&str),
}

/// Sends the lines of standard input to lane `data_id` of the agent at `home` and says on standard
/// error what came of it. Fails unless every line was acknowledged.
pub fn emit_stdin(home: &Path, data_id: u32) -> Result<EmitReport, EmitError> {
    let (report, ended) = Emitter::new(home, data_id).emit(io::stdin().lock());
    let cut = match report.cut {
        0 => String::new(),
        cut => format!(", {cut} cut at {RECORD_BYTES_MAX} bytes"),
    };
    to_stderr(&format!(
        "{} records, {} bytes, {} acknowledged{cut}",
        report.records, report.bytes, report.acknowledged
    ));
    ended.map(|()| report)
}

fn to_stderr(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "{text}");
}

impl Emitter {
    /// With the usual patience, talking to standard error.
    pub fn new(home: &Path, data_id: u32) -> Emitter {
        Emitter { home: home.to_owned(), data_id, patience: PATIENCE, tell: to_stderr }
    }

    /// Sends the lines of `input`; see [`emit_stdin`]. The report is true also when it fails.
    pub fn emit(&self, input: impl BufRead) -> (EmitReport, Result<(), EmitError>) {
        let mut report = EmitReport::default();
        let path = Home::new(&self.home).run().join(super::SOCKET_NAME);
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) => return (report, Err(EmitError::Connect(path, error))),
        };
        let mut client = [0; CLIENT_BYTES];
        clock::random(&mut client);
        let link = Link { emitter: self, path, client, window: Window::default() };
        let read = std::thread::scope(|scope| {
            scope.spawn(|| link.run(stream));
            let read = read_all(input, &link.window, &mut report);
            link.window.close(read.is_err());
            read
        });
        let mut state = link.window.lock();
        (report.acknowledged, report.reconnects) = (state.next, state.reconnects);
        let ended = match (read, state.failure.take()) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(()),
        };
        (report, ended)
    }
}

// ---------------------------------------------------------------------------- the window

/// Requests that are not answered, shared by all threads.
#[derive(Default)]
struct Window {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    open: VecDeque<Request>,
    open_bytes: u64,
    /// How many of `open`, from the front, were sent on this connection.
    sent: usize,
    /// Number behind the last record that was ever sent.
    sent_end: u64,
    /// Everything before is in the spool.
    next: u64,
    /// This connection is of no use any more.
    broken: bool,
    /// Nothing comes after what is open.
    input_ended: bool,
    /// What is open need not be waited for.
    given_up: bool,
    failure: Option<EmitError>,
    reconnects: u64,
}

struct Request {
    /// Number behind its last record.
    end: u64,
    bytes: u64,
    message: Arc<[u8]>,
}

/// What the link thread does next.
enum Step {
    Send(Arc<[u8]>),
    Reconnect,
    /// Everything is answered, or nobody waits for it.
    Done,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request when there is room for it; false when the link has failed for good.
    fn admit(&self, request: Request) -> bool {
        let mut state = self.lock();
        while state.failure.is_none()
            && state.open_bytes + request.bytes > u64::from(wire::WINDOW_BYTES)
        {
            state = self.wait(state);
        }
        if state.failure.is_some() {
            return false;
        }
        state.open_bytes += request.bytes;
        state.open.push_back(request);
        self.moved.notify_all();
        true
    }

    fn close(&self, given_up: bool) {
        let mut state = self.lock();
        state.input_ended = true;
        state.given_up |= given_up;
        self.moved.notify_all();
    }

    fn fail(&self, error: EmitError) {
        self.lock().failure.get_or_insert(error);
        self.moved.notify_all();
    }

    fn step(&self) -> Step {
        let mut state = self.lock();
        loop {
            if state.failure.is_some() || state.given_up {
                return Step::Done;
            }
            if state.input_ended && state.open.is_empty() {
                return Step::Done;
            }
            if state.broken {
                return Step::Reconnect;
            }
            if let Some(request) = state.open.get(state.sent) {
                let (message, end) = (request.message.clone(), request.end);
                state.sent += 1;
                state.sent_end = state.sent_end.max(end);
                return Step::Send(message);
            }
            state = self.wait(state);
        }
    }

    /// Everything before `next` is in the spool. An agent that has what was never sent is not one
    /// that can be believed.
    fn kept(&self, next: u64) {
        let mut state = self.lock();
        if next > state.sent_end {
            let sent = state.sent_end;
            let text = format!("it has {next} records of {sent} that were sent; is it an agent?");
            state.failure.get_or_insert(EmitError::Refused(text));
            self.moved.notify_all();
            return;
        }
        while let Some(request) = state.open.pop_front_if(|request| request.end <= next) {
            state.open_bytes -= request.bytes;
            state.sent = state.sent.saturating_sub(1);
        }
        state.next = state.next.max(next);
        self.moved.notify_all();
    }

    fn set_broken(&self, broken: bool) {
        let mut state = self.lock();
        (state.broken, state.sent) = (broken, if broken { state.sent } else { 0 });
        self.moved.notify_all();
    }
}

// ---------------------------------------------------------------------------- the link

struct Link<'a> {
    emitter: &'a Emitter,
    path: PathBuf,
    client: [u8; CLIENT_BYTES],
    window: Window,
}

impl Link<'_> {
    /// One connection after the other, until everything is answered.
    fn run(&self, stream: UnixStream) {
        let mut connected = self.open(stream);
        loop {
            let stream = match connected {
                Ok(stream) => stream,
                Err(_) => match self.reconnect() {
                    Some(stream) => stream,
                    None => return,
                },
            };
            let over = std::thread::scope(|scope| {
                scope.spawn(|| self.listen(&stream));
                let over = self.send(&stream);
                // Wakes the listener.
                let _ = stream.shutdown(Shutdown::Both);
                over
            });
            if over {
                return;
            }
            connected = Err(io::ErrorKind::UnexpectedEof.into());
        }
    }

    /// Sends what is to be sent; false when the connection broke.
    fn send(&self, mut stream: &UnixStream) -> bool {
        loop {
            match self.window.step() {
                Step::Done => return true,
                Step::Reconnect => return false,
                Step::Send(message) => {
                    if stream.write_all(&message).is_err() {
                        self.window.set_broken(true);
                    }
                }
            }
        }
    }

    /// Reads answers until the connection ends.
    fn listen(&self, stream: &UnixStream) {
        loop {
            match read_answer(stream) {
                Ok(Answer::Kept(next)) => self.window.kept(next),
                Ok(Answer::Refused(text)) => return self.window.fail(EmitError::Refused(text)),
                Ok(Answer::Ready(_)) | Err(_) => return self.window.set_broken(true),
            }
        }
    }

    /// Says who we are and hears how far the agent is.
    fn open(&self, stream: UnixStream) -> io::Result<UnixStream> {
        stream.set_read_timeout(Some(READY_TIME))?;
        (&stream).write_all(&wire::open(self.emitter.data_id, &self.client))?;
        match read_answer(&stream)? {
            Answer::Ready(next) => {
                stream.set_read_timeout(None)?;
                self.window.kept(next);
                self.window.set_broken(false);
                Ok(stream)
            }
            Answer::Refused(text) => {
                self.window.fail(EmitError::Refused(text));
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            Answer::Kept(_) => Err(io::Error::new(io::ErrorKind::InvalidData, Malformed)),
        }
    }

    /// Waits for the agent to come back; none when that takes too long or nobody waits any more.
    fn reconnect(&self) -> Option<UnixStream> {
        let (began, patience) = (Instant::now(), self.emitter.patience);
        let mut told = false;
        loop {
            if matches!(self.window.step_while_away(), Step::Done) {
                return None;
            }
            let connected = UnixStream::connect(&self.path).and_then(|stream| self.open(stream));
            let source = match connected {
                Ok(stream) => {
                    let text = self.window.came_back();
                    (self.emitter.tell)(&text);
                    return Some(stream);
                }
                Err(source) => source,
            };
            if !std::mem::replace(&mut told, true) {
                (self.emitter.tell)("the agent went away; waiting for it");
            }
            if began.elapsed() >= patience {
                self.window.fail(EmitError::Away { source, patience });
                return None;
            }
            std::thread::sleep(AGAIN.min(patience));
        }
    }
}

impl Window {
    /// Notes that there is a connection again; answers what to tell.
    fn came_back(&self) -> String {
        let mut state = self.lock();
        state.reconnects += 1;
        let (has, again) = (state.next, state.open.len());
        format!("the agent is back and has {has} records; {again} unanswered requests go again")
    }

    /// As [`Window::step`] without a connection: whether to go on trying.
    fn step_while_away(&self) -> Step {
        let state = self.lock();
        let answered = state.input_ended && state.open.is_empty();
        match state.failure.is_some() || state.given_up || answered {
            true => Step::Done,
            false => Step::Reconnect,
        }
    }
}

enum Answer {
    Ready(u64),
    Kept(u64),
    Refused(String),
}

fn read_answer(mut stream: &UnixStream) -> io::Result<Answer> {
    let malformed = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let bytes = u32::from_be_bytes(length) as usize;
    if bytes > MESSAGE_BYTES_MAX {
        return Err(malformed(Malformed));
    }
    let mut payload = vec![0; bytes];
    stream.read_exact(&mut payload)?;
    Ok(match wire::decode_from_server(&payload).map_err(malformed)? {
        FromServer::Ready { next, .. } => Answer::Ready(next),
        FromServer::Kept { next } => Answer::Kept(next),
        FromServer::Refused(text) => Answer::Refused(text.to_owned()),
    })
}

// ---------------------------------------------------------------------------- the input

/// Cuts the input into requests. Ends early, and not as an error of the input, when the link has
/// failed.
fn read_all(
    mut input: impl BufRead,
    window: &Window,
    report: &mut EmitReport,
) -> Result<(), EmitError> {
    let (mut line, mut body) = (Vec::new(), Vec::new());
    // The number of the first record in `body`.
    let mut first = 0;
    loop {
        line.clear();
        let (got, more) = read_line(&mut input, &mut line, report)?;
        if got {
            if body.len() + line.len() > REQUEST_BYTES
                && !give(window, &mut first, report.records, &mut body)
            {
                return Ok(());
            }
            report.records += 1;
            report.bytes += line.len() as u64;
            wire::put_record(&line, &mut body);
        }
        // Nothing more at hand: the next read may wait for a long time.
        if !more && !give(window, &mut first, report.records, &mut body) {
            return Ok(());
        }
        if !got {
            return Ok(());
        }
    }
}

/// Hands over the records from `first` to `end`; false when the link has failed.
fn give(window: &Window, first: &mut u64, end: u64, body: &mut Vec<u8>) -> bool {
    if *first == end {
        return true;
    }
    let message = wire::records(*first, body).into();
    let request = Request { end, bytes: body.len() as u64, message };
    *first = end;
    body.clear();
    window.admit(request)
}

/// Reads one line without its end; says whether there was one and whether more is at hand.
fn read_line(
    input: &mut impl BufRead,
    line: &mut Vec<u8>,
    report: &mut EmitReport,
) -> Result<(bool, bool), EmitError> {
    let mut any = false;
    let mut cut = false;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(EmitError::Input(error)),
        };
        if available.is_empty() {
            report.cut += u64::from(cut);
            return Ok((any, false));
        }
        any = true;
        let newline = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..newline.unwrap_or(available.len())];
        let room = RECORD_BYTES_MAX - line.len();
        cut |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let taken = newline.map_or(part.len(), |at| at + 1);
        let more = taken < available.len();
        input.consume(taken);
        if newline.is_some() {
            report.cut += u64::from(cut);
            return Ok((true, more));
        }
    }
}
