# SPDX-License-Identifier: Apache-2.0
"""The operator: schema, checks, Meta, reference, autograd, vmap and the public functions. Knows nothing of compilers."""
