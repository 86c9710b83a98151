# SPDX-License-Identifier: Apache-2.0
"""The operator: schema, checks, Meta, reference, autograd, vmap, public functions. Knows no compiler."""
