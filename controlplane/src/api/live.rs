//! The two requests that stream: uploads in, taps out.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use skein_wire::fleet::v1::TapRecords;
use tokio::sync::mpsc;

use super::App;
use super::error::ApiError;
use super::extract::Query;
use super::types::{TapLine, TapQuery, Upload, UploadQuery};
use crate::transfers::Content;

const MODE: u32 = 0o644;
/// An upload that brings nothing for this long is given up.
const UPLOAD_STALL: Duration = Duration::from_secs(60);
const TAP_RATE: u32 = 100;
const TAP_RATE_MAX: u32 = 10_000;
const TAP_CONTAINS_BYTES_MAX: usize = 1_024;

/// PUT `/uploads`: the body goes to the cache as it comes, hashed on the way.
pub async fn upload(
    State(app): State<Arc<App>>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Upload>, ApiError> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(length) = length else {
        return Err(ApiError::invalid("an upload needs a Content-Length"));
    };
    let mode = query.mode.unwrap_or(MODE);
    let content = Content { name: query.name, mode, mtime_ms: query.mtime_ms, tree: query.tree };
    let (chunks, finished) = app.transfers.cache().receive(content, length)?;
    let finished = tokio::spawn(finished);
    let mut body = body.into_data_stream();
    // A client that stalls gives its room in the cache back; what came is short and refused.
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(UPLOAD_STALL, body.next()).await {
        // The writer is gone when it has failed; its answer says why.
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    drop(chunks);
    Ok(Json(finished.await.map_err(ApiError::internal)??))
}

/// Ends a tap when its reader goes.
struct Untap {
    app: Arc<App>,
    tap_id: u64,
}

impl Drop for Untap {
    fn drop(&mut self) {
        let (app, tap_id) = (self.app.clone(), self.tap_id);
        tokio::spawn(async move { app.fleet.untap(tap_id).await });
    }
}

/// GET `/tap`: one JSON object per line until the client leaves.
pub async fn tap(
    State(app): State<Arc<App>>,
    Query(query): Query<TapQuery>,
) -> Result<Response, ApiError> {
    let contains = query.contains.unwrap_or_default();
    if contains.len() > TAP_CONTAINS_BYTES_MAX {
        return Err(ApiError::invalid("`contains` is longer than 1,024 bytes"));
    }
    let rate = query.records_per_second.unwrap_or(TAP_RATE).clamp(1, TAP_RATE_MAX);
    let (tap_id, records) = app.fleet.tap(query.data_id, contains, rate).await?;
    let untap = Untap { app: app.clone(), tap_id };
    let lines = stream::unfold((records, untap), |(mut records, untap)| async move {
        let lines = next_lines(&mut records, &untap.app).await?;
        Some((Ok::<_, std::convert::Infallible>(lines), (records, untap)))
    });
    let body = Body::from_stream(lines);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn next_lines(records: &mut mpsc::Receiver<TapRecords>, app: &App) -> Option<Bytes> {
    let batch = records.recv().await?;
    let mut skipped = batch.skipped;
    let mut lines: Vec<TapLine> = Vec::with_capacity(batch.records.len());
    for record in batch.records {
        lines.push(TapLine {
            hostname: app.registry.hostname(&record.agent_id),
            agent_id: record.agent_id,
            data_id: record.data_id,
            epoch: record.epoch,
            sequence: record.sequence,
            timestamp_ms: record.timestamp_ms,
            value: String::from_utf8_lossy(&record.value).into_owned(),
            skipped: std::mem::take(&mut skipped),
        });
    }
    if lines.is_empty() {
        lines.push(TapLine { skipped, ..TapLine::default() });
    }
    let mut text = Vec::new();
    for line in lines {
        // Plain fields always encode; a line that did not would only be missing.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
        }
    }
    Some(text.into())
}
