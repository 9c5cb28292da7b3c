//! Where the tensors of a training on the GPU come from.
//!
//! Training is written against [`Source`], so that the same code runs over Aquifer, here, and over
//! whatever it is compared with, in a bench. Tensors that stay are made outside of steps; those of
//! a step are made in its scope, and dropped as soon as the step has no more use for them.

use aquifer::backend::Role;
use aquifer::surface::wgpu::{Download, Upload};
use aquifer::{Bytes, Scope, Tag, WgpuAllocation, WgpuAllocator};
use wgpu::{BindingResource, CommandEncoder, Device};

use super::{Failure, Purpose, Tags};

/// Gives tensors of f32 on the GPU, parameters of kernels, and the way back to the CPU.
pub(crate) trait Source {
    /// A tensor, or parameters; dropped when nobody needs it any more, even if work that is
    /// recorded does.
    type Tensor;
    /// One encoder from beginning to submission.
    type Scope;
    /// Values on their way back.
    type Download;

    fn device(&self) -> &Device;

    /// A tensor outside of steps, with these values.
    #[track_caller]
    fn filled(&self, purpose: Purpose, values: &[f32]) -> Result<Self::Tensor, Failure>;

    /// A tensor outside of steps, all zero.
    #[track_caller]
    fn zeros(&self, purpose: Purpose, len: usize) -> Result<Self::Tensor, Failure>;

    /// `encoder` is about to be recorded.
    fn begin(&self, encoder: &mut CommandEncoder) -> Self::Scope;

    /// A tensor of a step, for what is written whole before it is read.
    #[track_caller]
    fn blank(
        &self,
        scope: &Self::Scope,
        purpose: Purpose,
        len: usize,
    ) -> Result<Self::Tensor, Failure>;

    /// Parameters of kernels, word by word, that hold from this point of `encoder` on.
    #[track_caller]
    fn uniforms<const N: usize>(
        &self,
        scope: &mut Self::Scope,
        encoder: &mut CommandEncoder,
        words: [&[u32]; N],
    ) -> Result<[Self::Tensor; N], Failure>;

    /// A tensor, or parameters, for a bind group of this scope.
    fn binding<'a>(&self, scope: &Self::Scope, tensor: &'a Self::Tensor) -> BindingResource<'a>;

    /// The values of a tensor at this point of `encoder`.
    fn download(
        &self,
        scope: &mut Self::Scope,
        encoder: &mut CommandEncoder,
        tensor: &Self::Tensor,
    ) -> Result<Self::Download, Failure>;

    /// Finishes and submits `encoder`.
    fn submit(&self, scope: Self::Scope, encoder: CommandEncoder);

    /// Waits for values whose scope was submitted.
    fn read(&self, download: &Self::Download) -> Result<Vec<f32>, Failure>;
}

/// Everything from Aquifer, with a tag for each purpose.
#[derive(Debug, Clone)]
pub(crate) struct Aquifer {
    memory: WgpuAllocator,
    tags: Tags,
    parameters: Tag,
}

impl Aquifer {
    pub(crate) fn new(memory: &WgpuAllocator) -> Self {
        let (tags, parameters) = (Tags::new(memory), memory.tag("kernel params"));
        Self { memory: memory.clone(), tags, parameters }
    }

    #[track_caller]
    fn allocate(&self, purpose: Purpose, len: usize) -> Result<WgpuAllocation, Failure> {
        let request = self.memory.request(bytes_of(len)).tag(self.tags.of(purpose));
        Ok(request.allocate()?)
    }
}

/// Bytes of so many values.
fn bytes_of(len: usize) -> Bytes {
    (len * size_of::<f32>()) as Bytes
}

impl Source for Aquifer {
    type Tensor = WgpuAllocation;
    type Scope = Scope;
    type Download = Download;

    fn device(&self) -> &Device {
        self.memory.device()
    }

    fn filled(&self, purpose: Purpose, values: &[f32]) -> Result<WgpuAllocation, Failure> {
        let tensor = self.allocate(purpose, values.len())?;
        self.memory.write_now(&tensor, 0, bytemuck::cast_slice(values))?;
        Ok(tensor)
    }

    fn zeros(&self, purpose: Purpose, len: usize) -> Result<WgpuAllocation, Failure> {
        let tensor = self.allocate(purpose, len)?;
        let mut encoder = self.device().create_command_encoder(&Default::default());
        let scope = self.memory.begin(&mut encoder);
        scope.clear(&mut encoder, &tensor);
        scope.submit(encoder);
        Ok(tensor)
    }

    fn begin(&self, encoder: &mut CommandEncoder) -> Scope {
        self.memory.begin(encoder)
    }

    fn blank(
        &self,
        scope: &Scope,
        purpose: Purpose,
        len: usize,
    ) -> Result<WgpuAllocation, Failure> {
        Ok(scope.request(bytes_of(len)).tag(self.tags.of(purpose)).allocate()?)
    }

    fn uniforms<const N: usize>(
        &self,
        scope: &mut Scope,
        encoder: &mut CommandEncoder,
        words: [&[u32]; N],
    ) -> Result<[WgpuAllocation; N], Failure> {
        let mut made = Vec::with_capacity(N);
        for words in words {
            let request = scope.request(size_of_val(words) as Bytes).role(Role::Uniform);
            made.push(request.tag(self.parameters).allocate()?);
        }
        let pairs = made.iter().zip(words);
        let upload = |(to, words)| Upload { to, offset: 0, bytes: bytemuck::cast_slice(words) };
        scope.upload_all(encoder, &pairs.map(upload).collect::<Vec<_>>())?;
        Ok(made.try_into().expect("one was made for each"))
    }

    fn binding<'a>(&self, scope: &Scope, tensor: &'a WgpuAllocation) -> BindingResource<'a> {
        scope.binding(tensor)
    }

    fn download(
        &self,
        scope: &mut Scope,
        encoder: &mut CommandEncoder,
        tensor: &WgpuAllocation,
    ) -> Result<Download, Failure> {
        Ok(scope.download(encoder, tensor)?)
    }

    fn submit(&self, scope: Scope, encoder: CommandEncoder) {
        scope.submit(encoder);
    }

    fn read(&self, download: &Download) -> Result<Vec<f32>, Failure> {
        Ok(bytemuck::pod_collect_to_vec(&download.wait()?))
    }
}
