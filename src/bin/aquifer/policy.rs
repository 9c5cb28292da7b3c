//! The options that choose a configuration; the same for every subcommand.

use aquifer::Config;

use crate::knobs;

/// Which preset, and what to change in it.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// The preset: `default` is this crate's own policy, `torch` that of PyTorch's CUDA caching
    /// allocator, down to its segment counts
    #[arg(long, value_enum, default_value_t = Policy::Default)]
    pub(crate) policy: Policy,

    /// Settings on top of the preset, as PyTorch takes them in PYTORCH_CUDA_ALLOC_CONF: for
    /// example `max_split_size_mb:128,garbage_collection_threshold:0.8`
    #[arg(long, value_name = "STRING")]
    pub(crate) config: Option<String>,

    /// One knob of this crate's own policy, a field of `Config`, on top of all that; may be
    /// repeated. Sizes may have units, `off` switches off what can be absent: for example
    /// `--set headroom=off --set spare_idle_count=0`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<String>,
}

/// A preset of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    /// The policy of this crate
    Default,
    /// The policy of PyTorch's CUDA caching allocator
    Torch,
}

impl Policy {
    /// Its name on the command line and in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Policy::Default => "default",
            Policy::Torch => "torch",
        }
    }
}

impl PolicyArgs {
    /// The configuration that was asked for.
    ///
    /// # Errors
    /// If an option names an unknown key or a value that is not allowed: which one, and why.
    pub(crate) fn configuration(&self) -> Result<Config, String> {
        let mut config = match self.policy {
            Policy::Default => Config::default(),
            Policy::Torch => Config::torch(),
        };
        if let Some(settings) = &self.config {
            config.apply_torch_conf(settings).map_err(|error| format!("--config: {error}"))?;
        }
        for setting in &self.settings {
            knobs::set(&mut config, setting).map_err(|error| format!("--set: {error}"))?;
        }
        config.validate().map_err(|error| format!("--set: {error}"))?;
        Ok(config)
    }
}
