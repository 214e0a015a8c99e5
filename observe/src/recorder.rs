//! The recorder behind the `metrics` macros: Prometheus's text format, with every name of the
//! catalogue described and every histogram given its buckets before the first sample.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::names::{self, Kind, Unit};
use crate::process;

/// Buckets of durations: 100 µs to 100 s, three per decade.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 100.0,
];
/// Buckets of sizes: 256 B to 1 GiB, powers of four.
const BYTES_BUCKETS: &[f64] = &[
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];
/// Buckets of ratios: fine above 1, where a few hundredths matter, then up to one copy per host.
const RATIO_BUCKETS: &[f64] =
    &[0.5, 0.9, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0];
/// Buckets of counts: powers of four up to 64 Ki.
const COUNT_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];

static INSTALLED: OnceLock<Handle> = OnceLock::new();

/// The metrics of this process, ready to be shown. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    prometheus: PrometheusHandle,
}

impl Handle {
    /// All metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        let mut text = self.prometheus.render();
        process::render(&mut text);
        text
    }

    /// Folds the samples of histograms that wait in memory; called by [`crate::serve`] so that
    /// they stay bounded when nobody scrapes.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Handle")
    }
}

/// Installs the recorder for this process, once; later calls return the same handle.
///
/// When a foreign recorder is already installed the returned handle shows only `process_*` of its
/// own; Skein's binaries call this first thing, so that does not happen to them.
pub fn install() -> Handle {
    INSTALLED.get_or_init(build).clone()
}

fn build() -> Handle {
    let mut builder = PrometheusBuilder::new();
    for metric in names::all().iter().filter(|metric| metric.kind == Kind::Histogram) {
        let buckets = match metric.unit {
            Unit::Seconds => SECONDS_BUCKETS,
            Unit::Bytes => BYTES_BUCKETS,
            Unit::Ratio => RATIO_BUCKETS,
            Unit::None => COUNT_BUCKETS,
        };
        builder = builder
            .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
            .expect("the bucket tables above are not empty");
    }
    let recorder = builder.build_recorder();
    let prometheus = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed; /metrics stays nearly empty");
    }
    describe_all();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Handle { prometheus }
}

fn describe_all() {
    for metric in names::all() {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
