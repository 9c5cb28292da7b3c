//! Gauges and counters through the facade `metrics` (feature `metrics`).

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::allocator::Allocator;
use crate::backend::Backend;
use crate::report::metrics::{Sample, Samples, collect};

fn unit(sample: &Sample) -> Unit {
    if sample.is_bytes { Unit::Bytes } else { Unit::Count }
}

impl<B: Backend> Allocator<B> {
    /// Publishes gauges (`aquifer_allocated_bytes`, `aquifer_active_bytes`,
    /// `aquifer_reserved_bytes`, …) and counters (`aquifer_allocations_total`,
    /// `aquifer_ooms_total`, …) to the recorder of the crate `metrics` that is installed, labelled
    /// `device` with what the backend says of its device. Exact and of one moment; O(streams) and
    /// some 20 calls of the recorder. To be called now and then, beside
    /// [`maintain`](Self::maintain), or before each scrape; nothing happens by itself.
    ///
    /// The counters are over the allocator's life, whoever resets the statistics; the peaks are
    /// those of [`memory_stats`](Self::memory_stats). Two allocators over one device need names of
    /// their own: [`publish_metrics_as`](Self::publish_metrics_as).
    pub fn publish_metrics(&self) {
        self.publish_metrics_as(&self.backend().describe());
    }

    /// As [`publish_metrics`](Self::publish_metrics), with another label `device`.
    pub fn publish_metrics_as(&self, device: &str) {
        let Samples { gauges, counters } = self.shared.world(collect);
        for sample in gauges {
            describe_gauge!(sample.name, unit(&sample), sample.help);
            gauge!(sample.name, "device" => device.to_owned()).set(sample.value as f64);
        }
        for sample in counters {
            describe_counter!(sample.name, unit(&sample), sample.help);
            counter!(sample.name, "device" => device.to_owned()).absolute(sample.value);
        }
    }
}
