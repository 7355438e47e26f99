//! Keys and values of one sequence on the device.

use candle_core::{DType, Device, Result, Tensor};

use crate::cache::CacheShape;

/// Positions by which a cache grows: growth copies, so not one by one; what is not filled yet is
/// memory beyond the budget.
const STEP: usize = 64;

/// Keys and values of all layers of one sequence. Grows in steps, shrinks when it is cut.
#[derive(Debug)]
pub(crate) struct Cache {
    shape: CacheShape,
    device: Device,
    layers: Vec<LayerCache>,
    len: usize,
}

/// Keys and values of one layer, shape `(n_kv_heads, capacity, head_dim)`.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// An empty one, which holds no memory.
    pub(crate) fn new(shape: CacheShape, device: &Device) -> Self {
        Self { shape, device: device.clone(), layers: Vec::new(), len: 0 }
    }

    /// Positions that are filled in all layers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Declares that all layers were filled up to `len`.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Writes keys and values of the positions after the filled ones, shape
    /// `(n_kv_heads, n_new, head_dim)`. Returns those of the layer; what lies behind the new ones
    /// is not meant.
    pub(crate) fn append(
        &mut self,
        layer_idx: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let end = self.len + keys.dim(1)?;
        if self.layers.is_empty() {
            let empty = || self.resized(None, 0, 0);
            let layer = || Ok(LayerCache { keys: empty()?, values: empty()? });
            self.layers = (0..self.shape.n_layers).map(|_| layer()).collect::<Result<_>>()?;
        }
        if self.layers[layer_idx].keys.dim(1)? < end {
            self.set_capacity(layer_idx, end)?;
        }
        let layer = &self.layers[layer_idx];
        layer.keys.slice_set(keys, 1, self.len)?;
        layer.values.slice_set(values, 1, self.len)?;
        Ok((layer.keys.clone(), layer.values.clone()))
    }

    /// Forgets the positions from `len` on, and gives memory back that would stay unused.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            // Also what a feed that failed has begun.
            (self.len, self.layers) = (0, Vec::new());
        }
        if len >= self.len {
            return Ok(());
        }
        self.len = len;
        for layer_idx in 0..self.layers.len() {
            if self.layers[layer_idx].keys.dim(1)? > len.next_multiple_of(STEP) + STEP {
                // It may find no memory for the smaller tensor beside the larger one, which then stays.
                let _ = self.set_capacity(layer_idx, len);
            }
        }
        Ok(())
    }

    /// A copy of the first `len` positions.
    pub(crate) fn fork(&self, len: usize) -> Result<Self> {
        let len = len.min(self.len);
        let mut fork = Self::new(self.shape, &self.device);
        if len > 0 {
            let copy = |tensor| self.resized(Some(tensor), len, len);
            let layers = self.layers.iter().map(|LayerCache { keys, values }| {
                Ok(LayerCache { keys: copy(keys)?, values: copy(values)? })
            });
            fork.layers = layers.collect::<Result<_>>()?;
            fork.len = len;
        }
        Ok(fork)
    }

    fn set_capacity(&mut self, layer_idx: usize, n_positions: usize) -> Result<()> {
        let LayerCache { keys, values } = &self.layers[layer_idx];
        self.layers[layer_idx] = LayerCache {
            keys: self.resized(Some(keys), self.len, n_positions)?,
            values: self.resized(Some(values), self.len, n_positions)?,
        };
        Ok(())
    }

    /// A tensor of its own with the first `n_kept` positions and room for `n_positions`.
    fn resized(&self, from: Option<&Tensor>, n_kept: usize, n_positions: usize) -> Result<Tensor> {
        let CacheShape { n_kv_heads, head_dim, .. } = self.shape;
        let shape = (n_kv_heads, n_positions.next_multiple_of(STEP), head_dim);
        let tensor = Tensor::zeros(shape, DType::F32, &self.device)?;
        if let Some(from) = from.filter(|_| n_kept > 0) {
            tensor.slice_set(&from.narrow(1, 0, n_kept)?.contiguous()?, 1, 0)?;
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape { n_layers: 2, n_kv_heads: 1, head_dim: 4 };

    fn append(cache: &mut Cache, value: f32, n_new: usize) {
        let rows = Tensor::full(value, (1, n_new, 4), &Device::Cpu).unwrap();
        for layer_idx in 0..SHAPE.n_layers {
            cache.append(layer_idx, &rows, &rows).unwrap();
        }
        cache.set_len(cache.len() + n_new);
    }

    fn capacity(cache: &Cache) -> usize {
        cache.layers.first().map_or(0, |layer| layer.keys.dim(1).unwrap())
    }

    /// The first value of each filled position.
    fn kept(cache: &Cache) -> Vec<f32> {
        let values = &cache.layers[1].values;
        let values = values.narrow(1, 0, cache.len()).unwrap().narrow(2, 0, 1).unwrap();
        values.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn memory_follows_the_length_in_steps() {
        let mut cache = Cache::new(SHAPE, &Device::Cpu);
        assert_eq!(capacity(&cache), 0);
        append(&mut cache, 1.0, 1);
        assert_eq!(capacity(&cache), STEP);
        append(&mut cache, 2.0, 3 * STEP);
        assert_eq!(capacity(&cache), 4 * STEP);
        cache.truncate(5).unwrap();
        assert_eq!((cache.len(), capacity(&cache)), (5, STEP));
        assert_eq!(kept(&cache), [1.0, 2.0, 2.0, 2.0, 2.0]);
        cache.truncate(9).unwrap();
        assert_eq!(cache.len(), 5);
        cache.truncate(0).unwrap();
        assert_eq!((cache.len(), capacity(&cache)), (0, 0));
    }

    #[test]
    fn a_fork_shares_no_memory() {
        let mut cache = Cache::new(SHAPE, &Device::Cpu);
        append(&mut cache, 1.0, STEP);
        let mut fork = cache.fork(2 * STEP).unwrap();
        cache.truncate(1).unwrap();
        append(&mut cache, 2.0, 3);
        fork.truncate(2).unwrap();
        append(&mut fork, 3.0, 1);
        assert_eq!(kept(&cache), [1.0, 2.0, 2.0, 2.0]);
        assert_eq!(kept(&fork), [1.0, 1.0, 3.0]);
        assert_eq!(cache.fork(0).unwrap().layers.len(), 0);
    }
}
