//! The shaders of a training step as pipelines: their bindings, and how many workgroups they want.
//!
//! Bind groups are made anew for each dispatch: where the operands of a step lie is the business of
//! the source, and may be different in the next step.

use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BindGroupLayout, ComputePass, ComputePipeline,
    ComputePipelineDescriptor, Device, ShaderModule, ShaderModuleDescriptor, ShaderSource,
};

use super::source::Source;

/// Invocations of a workgroup that handles a value each.
const INVOCATIONS: usize = 256;

/// Rows and columns of a product for each workgroup.
const TILE: usize = 64;

/// Columns that a workgroup sums.
const SUM_COLUMNS: usize = 16;

/// As many partial sums as `square_sums` has workgroups, whatever the size.
pub(super) const PARTIAL_SUMS: usize = 256;

/// One entry point of a shader.
#[derive(Debug)]
pub(super) struct Kernel {
    pipeline: ComputePipeline,
    layout: BindGroupLayout,
}

/// Those of a training step; `shaders/*.wgsl` say what each does and wants.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) matmul: Kernel,
    pub(super) matmul_transposed: Kernel,
    pub(super) add_bias: Kernel,
    pub(super) column_sums: Kernel,
    pub(super) square_sums: Kernel,
    pub(super) mean: Kernel,
    pub(super) gradient: Kernel,
    pub(super) adam: Kernel,
    /// Workgroups of one dimension, at most.
    groups_max: usize,
}

/// A pass that is being recorded in a scope.
pub(super) struct Pass<'a, S: Source> {
    pub(super) source: &'a S,
    pub(super) scope: &'a S::Scope,
    pub(super) pass: ComputePass<'a>,
}

impl Kernel {
    /// The layout of the bindings is that which the text implies: bindings that the entry point
    /// does not use are not in it.
    fn new(device: &Device, module: &ShaderModule, entry_point: &str) -> Self {
        let pipeline = device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(entry_point),
            layout: None,
            module,
            entry_point: Some(entry_point),
            compilation_options: Default::default(),
            cache: None,
        });
        let layout = pipeline.get_bind_group_layout(0);
        Self { pipeline, layout }
    }

    /// Dispatches it over tensors and parameters by the number of their binding.
    pub(super) fn dispatch<S: Source>(
        &self,
        at: &mut Pass<'_, S>,
        operands: &[(u32, &S::Tensor)],
        groups: [u32; 3],
    ) {
        let entries = operands.iter().map(|&(binding, tensor)| BindGroupEntry {
            binding,
            resource: at.source.binding(at.scope, tensor),
        });
        let bind_group = at.source.device().create_bind_group(&BindGroupDescriptor {
            label: None,
            layout: &self.layout,
            entries: &entries.collect::<Vec<_>>(),
        });
        at.pass.set_pipeline(&self.pipeline);
        at.pass.set_bind_group(0, &bind_group, &[]);
        let [x, y, z] = groups;
        at.pass.dispatch_workgroups(x, y, z);
    }
}

impl Kernels {
    pub(super) fn new(device: &Device) -> Self {
        let module = |name, text: &'static str| {
            let source = ShaderSource::Wgsl(text.into());
            device.create_shader_module(ShaderModuleDescriptor { label: Some(name), source })
        };
        let matmul = module("matmul", include_str!("../../../../shaders/matmul.wgsl"));
        let linear = module("linear", include_str!("../../../../shaders/linear.wgsl"));
        let loss = module("loss", include_str!("../../../../shaders/loss.wgsl"));
        let adam = module("adam", include_str!("../../../../shaders/adam.wgsl"));
        Self {
            matmul: Kernel::new(device, &matmul, "matmul"),
            matmul_transposed: Kernel::new(device, &matmul, "matmul_transposed"),
            add_bias: Kernel::new(device, &linear, "add_bias"),
            column_sums: Kernel::new(device, &linear, "column_sums"),
            square_sums: Kernel::new(device, &loss, "square_sums"),
            mean: Kernel::new(device, &loss, "mean"),
            gradient: Kernel::new(device, &loss, "gradient"),
            adam: Kernel::new(device, &adam, "adam"),
            groups_max: device.limits().max_compute_workgroups_per_dimension as usize,
        }
    }

    /// For an invocation on each of so many values.
    pub(super) fn groups_of_values(&self, values: usize) -> [u32; 3] {
        self.fold(values.div_ceil(INVOCATIONS))
    }

    /// For the sums of so many columns.
    pub(super) fn groups_of_columns(&self, columns: usize) -> [u32; 3] {
        self.fold(columns.div_ceil(SUM_COLUMNS))
    }

    /// For a product of so many rows and columns.
    pub(super) fn groups_of_product(&self, rows: usize, columns: usize) -> [u32; 3] {
        [columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, 1]
    }

    /// At least so many workgroups in two dimensions, since one has a limit.
    fn fold(&self, groups: usize) -> [u32; 3] {
        let y = groups.div_ceil(self.groups_max).max(1);
        [groups.div_ceil(y) as u32, y as u32, 1]
    }
}
