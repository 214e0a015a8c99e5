//! One data connection: moves bytes between the stream and [`Core`].

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use skein_wire::data::{DataError, decode_server_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::core::{Core, Over};
use crate::spool::Spool;

/// Received at once: hundreds of acknowledgements.
const READ_BYTES: usize = 16 * 1024;
/// An output buffer that grew past this is given back when it was written.
const OUT_KEPT_BYTES: usize = 256 * 1024;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is not this protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] DataError),
    /// Nothing was heard.
    #[error("the server did not answer a keep-alive for 30 s")]
    Silent,
    /// The server asked for it.
    #[error("the server goes away; back in {reconnect_after_ms} ms")]
    GoAway {
        /// When to come back.
        reconnect_after_ms: u32,
    },
}

impl Ended {
    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Ended::Closed => "closed",
            Ended::Io(_) => "io",
            Ended::Protocol(_) => "protocol",
            Ended::Silent => "silent",
            Ended::GoAway { .. } => "go_away",
        }
    }
}

impl From<Over> for Ended {
    fn from(over: Over) -> Ended {
        match over {
            Over::Silent => Ended::Silent,
            Over::GoAway { reconnect_after_ms } => Ended::GoAway { reconnect_after_ms },
        }
    }
}

/// Runs a connection on which HELLO was exchanged, until it ends.
pub async fn run<S: AsyncRead + AsyncWrite>(spool: &Rc<Spool>, io: S) -> Ended {
    let (mut reader, mut writer) = tokio::io::split(io);
    let core = RefCell::new(Core::new(spool.clone(), crate::clock::now_ms()));
    let news = Notify::new();
    // A write may wait for the server, so reading and timers go on beside it.
    let ended = tokio::select! {
        ended = read(&mut reader, &core, &news) => ended,
        ended = write(&mut writer, &core, &news, spool) => ended,
        ended = watch(&core, &news) => ended,
    };
    match ended {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

enum Never {}

async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    core: &RefCell<Core>,
    news: &Notify,
) -> Result<Never, Ended> {
    // Frames of a server are short: a buffer this small always has room for the rest of one.
    let mut buffer = vec![0; READ_BYTES];
    let mut held = 0;
    loop {
        let bytes = reader.read(&mut buffer[held..]).await?;
        if bytes == 0 {
            return Err(Ended::Closed);
        }
        held += bytes;
        let mut at = 0;
        while let Some((frame, bytes)) = decode_server_frame(&buffer[at..held])? {
            core.borrow_mut().on_frame(frame, crate::clock::now_ms());
            at += bytes;
        }
        buffer.copy_within(at..held, 0);
        held -= at;
        core.borrow().drained(crate::clock::now_ms())?;
        news.notify_one();
    }
}

async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    core: &RefCell<Core>,
    news: &Notify,
    spool: &Spool,
) -> Result<Never, Ended> {
    let mut out = Vec::new();
    loop {
        {
            let mut core = core.borrow_mut();
            core.take_news(crate::clock::now_ms());
            core.fill(&mut out);
        }
        if out.is_empty() {
            tokio::select! {
                () = spool.changed() => {}
                () = news.notified() => {}
            }
            continue;
        }
        writer.write_all(&out).await?;
        writer.flush().await?;
        out.clear();
        out.shrink_to(OUT_KEPT_BYTES);
    }
}

async fn watch(core: &RefCell<Core>, news: &Notify) -> Result<Never, Ended> {
    loop {
        let now_ms = crate::clock::now_ms();
        let at_ms = core.borrow_mut().tick_at_ms(now_ms);
        tokio::time::sleep(Duration::from_millis(at_ms - now_ms)).await;
        core.borrow_mut().on_time(crate::clock::now_ms())?;
        news.notify_one();
    }
}
