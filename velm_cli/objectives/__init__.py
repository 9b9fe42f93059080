"""The terms of alpha*L_text + beta*L_image + gamma*L_joint: each returns a sum and a count."""
